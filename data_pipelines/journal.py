"""The lines of one part of a stage, written as its items end.

The first line, always as long, says what the part was made from and, once all are there, what all
its rows say together. A part that was cut short goes on behind its last whole line.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import OvtrainError

HEAD = 128
"""Bytes of the first line."""
LINES = 256
"""Rows that are read at a time."""
DIGESTS = 1 << 128

Row = dict[str, Any]


class StageError(OvtrainError):
    """A stage is asked for whose input is not there, or was made from something else."""


class Journal:
    """The lines of a part under way; ``rows``: those that an earlier try left; ``done``: their
    items; ``open_beside``: what is closed with it."""

    def __init__(self, path: Path, made_from: str, rows: list[Row], handle: IO[bytes]) -> None:
        self.path, self._made_from, self._handle = path, made_from, handle
        self.rows = rows
        self.done = {int(row["item"]) for row in rows}
        self.open_beside = ExitStack()
        self._digest = sum(map(_digest, rows)) % DIGESTS
        self._last, self._sorted = -1, True
        for row in rows:
            self._note(row["item"])

    @classmethod
    def open(cls, path: Path, made_from: str) -> Journal:
        """Go on behind the whole lines of a part that was made from the same, or begin."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        handle = open(path, "r+b")  # noqa: SIM115 - closed by ``__exit__``
        try:
            _lock(handle, path)
        except StageError:
            handle.close()
            raise
        rows, end = _whole_lines(handle, made_from)
        handle.truncate(end)
        handle.seek(end)
        journal = cls(path, made_from, rows, handle)
        if not end:
            handle.write(journal._head())
        return journal

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.open_beside.close()
        self._handle.close()

    def add(self, number: int, row: Row) -> None:
        row = {"item": number, **row}
        self._note(number)
        self._digest = (self._digest + _digest(row)) % DIGESTS
        self._handle.write(_line(row))
        self._handle.flush()

    def finish(self, path: Path) -> None:
        """All rows are there: give them their order, their digest, their name."""
        self._handle.flush()
        if not self._sorted:
            # Not in place: a run that is cut short here must find each row once.
            self._handle.seek(HEAD)
            rows = sorted(map(json.loads, self._handle), key=lambda row: row["item"])
            with atomic_open(path) as handle:
                handle.write(self._head())
                handle.writelines(map(_line, rows))
            self.path.unlink()
            return
        self._handle.seek(0)
        self._handle.write(self._head())
        self._handle.flush()
        os.fsync(self._handle.fileno())
        os.replace(self.path, path)

    def _note(self, number: int) -> None:
        self._sorted = self._sorted and number > self._last
        self._last = number

    def _head(self) -> bytes:
        """The first line; always as long, so that it can be written over."""
        head = json.dumps({"made_from": self._made_from, "digest": f"{self._digest:032x}"})
        return head.ljust(HEAD - 1).encode() + b"\n"


def _digest(row: Row) -> int:
    """Of one row, and to be added to those of others."""
    return int.from_bytes(blake2b(json.dumps(row).encode(), digest_size=16).digest())


def _lock(handle: IO[bytes], path: Path) -> None:
    """Held until the file is closed. Raises StageError where another process writes this part."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            fix = "wait for it, or stop it: this part goes on where it was"
            raise StageError(str(path), "another process works on this part", fix=fix) from None
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise


def read_header(path: Path) -> dict[str, str]:
    """Raises StageError where the first line is none."""
    with open(path, encoding="utf-8", errors="replace") as handle:
        found = _parsed(handle.readline())
    if found is None or not {"made_from", "digest"} <= set(found):
        raise StageError(f"{path}, line 1", "not a manifest", fix="delete it, run its part again")
    return found


def _parsed(line: str) -> Row | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a part, some at a time: thousands of parts are read together, not all open."""
    at, number = HEAD, 1
    while True:
        with open(path, "rb") as handle:
            handle.seek(at)
            lines = list(islice(handle, LINES))
        if not lines:
            return
        for line in lines:
            at, number = at + len(line), number + 1
            row = _parsed(line.decode(errors="replace"))
            if row is None:
                fix = "delete the file, run its part again"
                raise StageError(f"{path}, line {number}", "not a row", fix=fix)
            yield row


def _whole_lines(handle: IO[bytes], made_from: str) -> tuple[list[Row], int]:
    """Rows of a part that was cut short, and the bytes they take, the first line included. Read
    through the handle that holds the lock: closing another one would let go of it."""
    rows: list[Row] = []
    handle.seek(0)
    head = handle.readline()
    found = _parsed(head.decode(errors="replace"))
    if len(head) != HEAD or found is None or found.get("made_from") != made_from:
        return [], 0
    end = HEAD
    for line in handle:
        row = _parsed(line.decode(errors="replace")) if line.endswith(b"\n") else None
        if row is None:
            break
        rows.append(row)
        end += len(line)
    return rows, end


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"
