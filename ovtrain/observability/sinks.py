"""Where metrics go: ``JsonlSink`` always; wandb (sinks_wandb.py) and TensorBoard
(sinks_tensorboard.py) on request.

A row is a flat mapping of metric name -> number (or a small mapping, as ``views``); ``step`` is
always present. Events go to metrics.jsonl alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any, Protocol

from ovtrain.observability.history import EVENT, read_lines
from ovtrain.schema.atomic import atomic_open, naming

MET_AGAIN = "fault"
"""The one event that a resumed run meets again, as it does its steps; but for those that STAY."""
HUNG, RANK = "hung", "rank"
"""Faults of the machine and the hour, which are not met again."""
STOPPED = "stopped"
"""The fault of a start that an error ended."""
STAY = (HUNG, RANK, STOPPED)


class Sink(Protocol):
    def write(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """Append-only JSON lines; each row is on disk (flushed) when ``write`` returns. Threads may
    write: their lines do not mix. ``write`` raises an OSError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._end_torn_line()
        self._lock = Lock()
        self._file: IO[str] = open(path, "a")  # noqa: SIM115 (lives as long as the run)

    def write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(dict(row)) + "\n"
        with self._lock, naming(self.path):
            self._file.write(line)
            self._file.flush()

    def truncate_after(self, step: int) -> None:
        """Drop what a run resumed at ``step`` meets, and writes, again: metrics and faults of later
        steps. Starts and stops stay, whatever their step."""
        with self._lock:  # no row of another thread is lost between the files
            kept = [r for r in read_lines(self.path) if r.get("step", 0) <= step or _stays(r)]
            with atomic_open(self.path, "w") as handle:
                handle.writelines(json.dumps(row) + "\n" for row in kept)
            self._file.close()
            self._file = open(self.path, "a")  # noqa: SIM115

    def close(self) -> None:
        with self._lock, suppress(OSError):  # of a line that could not be written, and was told of
            self._file.close()

    def _end_torn_line(self) -> None:
        """A killed writer may leave half a line; a new row must not be glued to it."""
        if self.path.is_file() and (raw := self.path.read_bytes()) and not raw.endswith(b"\n"):
            with open(self.path, "a") as handle:
                handle.write("\n")


def _stays(row: Mapping[str, Any]) -> bool:
    return EVENT in row and (row[EVENT] != MET_AGAIN or row.get("kind") in STAY)


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """{"views": {"codec": 3}} -> {"views/codec": 3}."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found.update({f"{key}/{name}": entry for name, entry in value.items()})
        else:
            found[key] = value
    return found
