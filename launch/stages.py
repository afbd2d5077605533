"""Idempotent stages of one output folder: a stage whose command and inputs are unchanged, and whose
outputs exist, is not run again.

    OUT/stages/{name}.json   fingerprint, status (started | done), seconds
    OUT/stages.json          [{"name", "status": "ran" | "skipped" | "failed", "seconds", "note"}]
    OUT/logs/{name}.log      the job's output, appended

``seconds`` of a skipped stage are those of the run that made its outputs.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from launch.display import Display
from launch.processes import Outcome, run_process, worker_env
from ovtrain.observability.history import Row, read_object
from ovtrain.schema.atomic import file_sha256, write_json
from ovtrain.schema.errors import OvtrainError


@dataclass(frozen=True)
class Stage:
    """One job. ``inputs``: files whose content counts (configs, manifests); ``outputs``: files it
    must leave; ``resumes``: a folder it can go on in, emptied when the fingerprint changed;
    ``state``: text that counts like an input."""

    name: str
    command: Sequence[str]
    inputs: Sequence[Path] = ()
    outputs: Sequence[Path] = ()
    resumes: Path | None = None
    nproc: int = 1
    state: str = ""
    note: str = ""


class StageFailed(OvtrainError):
    """A stage's job ended badly; ``status`` is the exit status to leave with."""

    def __init__(self, stage: str, log: Path, outcome: Outcome) -> None:
        self.status = outcome.status or 1
        last = next((line for line in reversed(outcome.last) if line.strip()), "no output")
        super().__init__(f"stage {stage}", outcome.error or last, fix=f"log: {log}")


@dataclass
class Record:
    """A row of stages.json."""

    name: str
    status: str
    seconds: float
    note: str = ""


@dataclass
class StageRunner:
    """Runs stages one after another and keeps the record."""

    out: Path
    display: Display
    records: list[Record] = field(default_factory=list[Record])

    def is_current(self, stage: Stage) -> bool:
        """Whether the stage's outputs are those of its present command and inputs."""
        return _is_done(stage, fingerprint(stage), read_object(self._mark(stage)) or {})

    def _mark(self, stage: Stage) -> Path:
        return self.out / "stages" / f"{stage.name}.json"

    def run(self, stage: Stage) -> None:
        """Run or skip one stage. Raises StageFailed, OvtrainError."""
        mark = self._mark(stage)
        stamp, before = fingerprint(stage), read_object(mark) or {}
        same = before.get("fingerprint") == stamp
        if _is_done(stage, stamp, before):
            self._record(Record(stage.name, "skipped", float(before["seconds"]), stage.note))
            return
        if stage.resumes is not None and before and not same and stage.resumes.exists():
            shutil.rmtree(stage.resumes)
        write_json(mark, {"fingerprint": stamp, "status": "started", "seconds": 0.0})
        earlier = float(before.get("spent", 0.0)) if same else 0.0
        seconds = self._run(stage, mark, stamp, earlier)
        write_json(mark, {"fingerprint": stamp, "status": "done", "seconds": round(seconds, 2)})
        self._record(Record(stage.name, "ran", round(seconds, 2), stage.note))

    def _run(self, stage: Stage, mark: Path, stamp: str, earlier: float) -> float:
        """Seconds the job took, those of an interrupted try it resumed included."""
        log = self.out / "logs" / f"{stage.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        self.display.start(stage.name)
        outcome = Outcome(status=1)
        try:
            with open(log, "a") as handle:

                def on_line(line: str) -> None:
                    handle.write(line + "\n")
                    handle.flush()
                    self.display.line(line)

                outcome = run_process(stage.command, worker_env(stage.nproc), on_line)
            _check_outputs(stage, outcome)
        finally:
            seconds = earlier + time.monotonic() - start
            if outcome.status:
                write_json(mark, {"fingerprint": stamp, "status": "started", "spent": seconds})
                self._record(Record(stage.name, "failed", round(seconds, 2), stage.note))
        if outcome.status in (130, 138, 143):
            raise KeyboardInterrupt
        if outcome.status:
            raise StageFailed(stage.name, log, outcome)
        return seconds

    def _record(self, record: Record) -> None:
        self.records.append(record)
        self.display.end(record.name, record.status, record.seconds)
        write_json(self.out / "stages.json", [asdict(entry) for entry in self.records])


def _is_done(stage: Stage, stamp: str, before: Row) -> bool:
    same = before.get("fingerprint") == stamp and before.get("status") == "done"
    return same and all(path.exists() for path in stage.outputs)


def _check_outputs(stage: Stage, outcome: Outcome) -> None:
    """A job that reports success but left nothing has failed."""
    missing = [str(path) for path in stage.outputs if not path.exists()]
    if not outcome.status and missing:
        outcome.status, outcome.error = 1, f"the job ended well but left no {', '.join(missing)}"


def fingerprint(stage: Stage) -> str:
    """Of the command and every input's content. Raises OvtrainError where an input is absent."""
    digest = sha256(os.fsencode(stage.state))
    # The interpreter may move between two calls; what it runs may not.
    for word in stage.command:
        digest.update(b"python\0" if word == sys.executable else os.fsencode(word) + b"\0")
    for path in stage.inputs:
        if not path.is_file():
            raise OvtrainError(f"stage {stage.name}", f"input {path} is missing")
        digest.update(file_sha256(path).encode())
    return digest.hexdigest()[:32]
