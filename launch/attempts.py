"""What became of each start of a batch job, and whether the job is to start once more.

    python -m launch.attempts begin CONFIG.yaml
    python -m launch.attempts end CONFIG.yaml --status 1 --job "$(scontrol show job 7)" --restarts 3

``{run.out}/logs/attempts.jsonl`` holds one object per start that has ended: attempt (0, 1, ...),
job, nodes, began, ended (s since the epoch), status, kind (finished, saved after a signal, stopped
by one before it could save, lost, failed, input_error, unhealthy), why, rank and node (of the
failure; null and "" without one), step (of the newest checkpoint), excluded (nodes).
``attempt-JOB.json`` is the start of a job that is under way: one that left no row was lost, as
where a node loses its power.

``end`` prints what the script shall do: ``end STATUS`` or ``requeue`` and nodes to leave out. So
does ``begin`` where the job shall not start again; else it prints nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.failures import Failure, failures
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.schema.atomic import write_json
from ovtrain.schema.errors import exit_status
from ovtrain.schema.metrics import Row, read_lines
from ovtrain.schema.status import REQUEUE, UNHEALTHY

STOPPED, FAILED = ("saved", "stopped", "lost"), ("failed", "unhealthy")
STOPS = 20
"""So many stops in a row without a newer checkpoint, and a job does not start again: its time is
up, or it is preempted, before it gets anywhere."""
FAULTS_OF_A_NODE = 2
"""So many failures on a node in this job, and it is left out."""


@dataclass(frozen=True)
class JobNow:
    """A job as ``scontrol show job`` tells of it: state ("" where SLURM did not answer), seconds
    that it ran, and may run (None without a limit), whether this start was preempted."""

    state: str
    ran_s: int
    limit_s: int | None
    preempted: bool = False

    @classmethod
    def of(cls, shown: str) -> JobNow:
        found = dict(re.findall(r"(\w+)=(\S*)", shown))
        limit = _seconds(found.get("TimeLimit", ""))
        ran = _seconds(found.get("RunTime", "")) or 0
        times = [found.get(name, "") for name in ("StartTime", "PreemptTime")]
        preempted = all(text[:1].isdigit() for text in times) and times[0] <= times[1]
        return cls(found.get("JobState", ""), ran, limit, preempted)

    @property
    def decided(self) -> bool:
        """SLURM is ending this start, and knows whether there will be another: the job was
        cancelled, or is requeued. COMPLETING is all that it says of both; of a job that is out of
        time, which would not come back by itself; and of a preempted one, which may not."""
        if self.state != "COMPLETING":
            return self.state in ("CANCELLED", "DEADLINE")
        if self.preempted:
            return False
        return self.limit_s is None or self.ran_s < self.limit_s


def _seconds(text: str) -> int | None:
    """Of SLURM's [days-]hours:minutes:seconds; None for words."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _health_report(out: Path) -> Path:
    return out / "logs" / "health.json"


def read_attempts(out: Path) -> list[Row]:
    """Rows of ``attempts.jsonl``, oldest first."""
    return list(read_lines(out / "logs" / "attempts.jsonl"))


def _rows_of(out: Path, job: str) -> list[Row]:
    """Of one job: what became of others says nothing of its nodes and restarts."""
    return [row for row in read_attempts(out) if row["job"] == job]


def _current(out: Path, env: Mapping[str, str]) -> Path:
    return out / "logs" / f"attempt-{env.get('SLURM_JOB_ID', 'job')}.json"


def newest_step(out: Path) -> int:
    """Of the newest whole checkpoint, -1 without one."""
    latest = out / "checkpoints" / "latest"
    found = re.search(r"(\d+)$", latest.read_text().strip()) if latest.is_file() else None
    return int(found[1]) if found else -1


def attempt_name(env: Mapping[str, str]) -> str:
    """Of a start of a SLURM job, the same on all nodes, another one after each requeue."""
    return f"{env.get('SLURM_JOB_ID', 'job')}.{env.get('SLURM_RESTART_COUNT', '0')}"


def begin(out: Path, env: Mapping[str, str]) -> Decision | None:
    """Note a start, with a row for an earlier one of this job that was lost; the decision where it
    has been lost too often."""
    current = _current(out, env)
    if current.is_file():
        why = "ended without a word: its node was lost, or SLURM killed and requeued it"
        _append(out, json.loads(current.read_text()), 1, "lost", why)
        current.unlink()
        decision = decide(_rows_of(out, env.get("SLURM_JOB_ID", "")), restarts=0)
        if decision.status is not None:
            return decision
    _health_report(out).unlink(missing_ok=True)  # an earlier start's
    write_json(current, _about(out, env))
    return None


def _about(out: Path, env: Mapping[str, str]) -> Row:
    return {
        "attempt": len(read_attempts(out)),
        "job": env.get("SLURM_JOB_ID", ""),
        "nodes": env.get("OVTRAIN_NODES", "").split(),
        "began": time.time(),
    }


def end(out: Path, status: int, job: JobNow, restarts: int, env: Mapping[str, str]) -> Decision:
    """Write the row of the start under way and decide. ``status``: of its step."""
    current = _current(out, env)
    about = json.loads(current.read_text()) if current.is_file() else _about(out, env)
    found = failures(out, attempt_name(env))
    first = found[0] if found else None
    kind, why = _kind(status, first, job.state)
    unhealthy: list[str] = []
    if kind == "unhealthy":
        unhealthy, problems = _health(out)
        why, first = problems or why, None
    earlier = _rows_of(out, about["job"])
    rows = [*earlier, {"kind": kind, "step": newest_step(out), "node": first.node if first else ""}]
    if first:
        print("\n".join(first.lines()), file=sys.stderr, flush=True)
    before = [node for row in earlier for node in row["excluded"]]
    excluded = sorted({*before, *unhealthy, *_faulty_nodes(rows)})
    decision = decide(rows, restarts, excluded, decided=job.decided)
    _append(out, about, status, kind, why, first, excluded)
    current.unlink(missing_ok=True)
    return decision


def _kind(status: int, first: Failure | None, state: str) -> tuple[str, str]:
    """What became of a start, and why."""
    if status == UNHEALTHY:
        return "unhealthy", "the check before training found bad nodes"
    if first is None and status - 128 in (signal.SIGTERM, signal.SIGUSR1):
        return "stopped", "stopped by a signal before its ranks had started"
    if first is not None:
        stopped = "stopped by a signal, unsaved: " if first.kind == "stopped" else ""
        return first.kind, f"{stopped}rank {first.rank} on {first.node}: {first.why}"
    if status == 0:
        return "finished", "trained to the end"
    if status == REQUEUE:
        return "saved", "saved after a signal" + (f" ({state})" if state != "RUNNING" else "")
    if status == 2:
        return "input_error", "an error of the input"
    return "failed", f"the step ended with status {status}" + (f" ({state})" if state else "")


def _health(out: Path) -> tuple[list[str], str]:
    """Bad nodes, and why, as the check before training found; none where it left no report."""
    path = _health_report(out)
    if not path.is_file():
        return [], ""
    report = json.loads(path.read_text())
    return list(report.get("bad_nodes", [])), "; ".join(report.get("problems", []))


def _faulty_nodes(rows: Sequence[Row]) -> list[str]:
    """Nodes on which ranks have failed more than once."""
    counts = Counter(str(row["node"]) for row in rows if row["kind"] == "failed" and row["node"])
    return [node for node, count in counts.items() if count >= FAULTS_OF_A_NODE]


@dataclass(frozen=True)
class Decision:
    """``status``: what the job ends with, None where it is to be requeued without ``excluded``."""

    status: int | None
    excluded: tuple[str, ...] = ()
    why: str = ""

    def __str__(self) -> str:
        return (
            f"end {self.status}"
            if self.status is not None
            else " ".join(("requeue", *self.excluded))
        )


def decide(
    rows: Sequence[Row], restarts: int, excluded: Sequence[str] = (), *, decided: bool = False
) -> Decision:
    """What to do after ``rows``, the last of which has just ended.

    A run that a signal stopped, or that was lost, goes on; ``STOPS`` times in a row without a newer
    checkpoint at most. One that failed goes on from its newest checkpoint, at most ``restarts``
    times in a row without a newer one. An error of the input does not go on, nor does, of its own
    accord, a job about which SLURM has ``decided``.
    """
    last = rows[-1]
    if last["kind"] == "finished":
        return Decision(0)
    if last["kind"] == "input_error":
        return Decision(2)
    if decided:
        why = "SLURM was ending the job, by scancel or to start it again by itself"
        return Decision(REQUEUE if last["kind"] == "saved" else 1, why=why)
    alike, bound = (STOPPED, STOPS) if last["kind"] in STOPPED else (FAILED, restarts)
    stuck = 0
    for row in reversed(rows):
        if row["kind"] not in alike or row["step"] != last["step"]:
            break
        stuck += 1
    if stuck > bound:
        told = "ended early" if alike is STOPPED else "failed"
        return Decision(1, why=f"{told} {stuck} times in a row without a newer checkpoint")
    return Decision(None, tuple(excluded))


def _append(
    out: Path,
    about: Row,
    status: int,
    kind: str,
    why: str,
    first: Failure | None = None,
    excluded: Sequence[str] = (),
) -> None:
    row = {
        **about,
        "ended": time.time(),
        "status": status,
        "kind": kind,
        "why": why,
        "rank": first.rank if first else None,
        "node": first.node if first else "",
        "step": newest_step(out),
        "excluded": list(excluded),
    }
    path = out / "logs" / "attempts.jsonl"
    raw = path.read_bytes() if path.is_file() else b""
    torn = bool(raw) and not raw.endswith(b"\n")
    with open(path, "a") as handle:
        handle.write("\n" * torn + json.dumps(row) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.attempts", description=__doc__)
    parser.add_argument("what", choices=("begin", "end"))
    parser.add_argument("config")
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--job", default="", help="what scontrol show job prints")
    parser.add_argument("--restarts", type=int, default=3)
    given = parser.parse_args(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        out = Path(load(TrainConfig, given.config).run.out)
        if given.what == "begin":
            decision = begin(out, os.environ)
            if decision is None:
                return
        else:
            decision = end(out, given.status, JobNow.of(given.job), given.restarts, os.environ)
        if decision.why:
            print(f"not started again: {decision.why}", file=sys.stderr, flush=True)
        print(decision)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
