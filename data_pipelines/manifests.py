"""Manifests of stages: work that may be split over tasks, interrupted, and done once.

    OUT/manifests/STAGE/part-00003-of-00016.jsonl

A stage has n items; part i of c does the items i, i + c, i + 2c, ... and writes one line for each,
``{"item": number, ...}``. The next stage reads the parts together, in the order of the items, so
that how a stage was split changes nothing behind it. The first line of a part says what it was made
from; a part that is there, made from the same, is not made again. Lines are appended as items end
and the file takes its name when all are there: a part that was cut short goes on behind them.
"""

from __future__ import annotations

import errno
import fcntl
import heapq
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from ovtrain.schema.errors import OvtrainError

MANIFESTS = "manifests"
PARTIAL = ".partial"
PART = re.compile(r"(\d+)/(\d+)")
FILE = re.compile(r"part-(\d{5})-of-(\d{5})\.jsonl")

Row = dict[str, Any]
Item = TypeVar("Item")


class StageError(OvtrainError):
    """A stage is asked for whose input is not there, or was made from something else."""


@dataclass(frozen=True)
class Part:
    """Part ``number`` of ``count``."""

    number: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """ "3/16": parts count from 0. Raises StageError."""
        found = PART.fullmatch(text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if number >= count:
            raise StageError(
                f"--part {text}", "no part", allowed="I/N with I from 0 to N - 1, as in 3/16"
            )
        return cls(number, count)

    @classmethod
    def of_array(cls) -> Part:
        """That of this task of a SLURM array; the only one elsewhere."""
        variables = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
        values = [os.environ.get(name, "") for name in variables]
        if not all(values):
            return cls()
        number, first, count = map(int, values)
        if not 0 <= number - first < count:
            raise StageError(
                f"SLURM_ARRAY_TASK_ID={number}",
                f"not in a row with the other {count} tasks",
                fix="give the array a range without gaps, as in --array=0-15",
            )
        return cls(number - first, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def file(self) -> str:
        return f"part-{self.number:05d}-of-{self.count:05d}.jsonl"


@dataclass(frozen=True)
class Manifest:
    """The rows of stage ``name`` in ``out``."""

    out: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.out / MANIFESTS / self.name

    def is_current(self, part: Part, made_from: str) -> bool:
        path = self.folder / part.file
        return path.is_file() and _header(path).get("made_from") == made_from

    def made_from(self) -> str:
        """What all parts were made from. Raises StageError where parts are missing or differ."""
        paths = self._parts()
        found = {path.name: str(_header(path).get("made_from")) for path in paths}
        if len(set(found.values())) > 1:
            first = found[paths[0].name]
            others = [name for name, value in found.items() if value != first]
            raise StageError(
                str(self.folder),
                f"{', '.join(others[:5])} made from other files or settings than {paths[0].name}",
                fix=f"run --stage {self.name} again for all parts",
            )
        return found[paths[0].name]

    def rows(self) -> Iterator[Row]:
        """All rows in the order of their items. Raises StageError where a part is missing."""
        return heapq.merge(*map(_lines, self._parts()), key=lambda row: row["item"])

    def _parts(self) -> list[Path]:
        found = {path.name: path for path in self.folder.glob("part-*.jsonl")}
        counts = {int(match[2]) for name in found if (match := FILE.fullmatch(name))}
        if not counts:
            raise StageError(
                str(self.folder), "nothing here yet", fix=f"run --stage {self.name} first"
            )
        count = max(counts)
        wanted = [Part(number, count) for number in range(count)]
        missing = [part for part in wanted if part.file not in found]
        if missing:
            names = ", ".join(map(str, missing[:8])) + (", ..." if missing[8:] else "")
            raise StageError(
                str(self.folder),
                f"{len(missing)} of {count} parts are missing: {names}",
                fix=f"run --stage {self.name} --part {missing[0]} and so on, or submit the array "
                "again: what is there is not done again",
            )
        return [found[part.file] for part in wanted]

    def write(
        self,
        part: Part,
        made_from: str,
        items: Iterable[Item],
        make: Callable[[Journal, list[tuple[int, Item]]], Iterable[tuple[int, Row]]],
    ) -> None:
        """Do a part: ``make`` is given the items that are left, with their numbers, and yields a
        row for each as it ends."""
        with Journal.open(self.folder / (part.file + PARTIAL), made_from) as journal:
            mine = (
                (number, item)
                for number, item in enumerate(items)
                if number % part.count == part.number and number not in journal.done
            )
            for number, row in make(journal, list(mine)):
                journal.add(number, row)
            self._finish(part, journal)

    def _finish(self, part: Part, journal: Journal) -> None:
        """Sort the lines, give the file its name, remove parts of other splits."""
        journal.sort()
        os.replace(journal.path, self.folder / part.file)
        for path in self.folder.glob("part-*.jsonl*"):
            match = FILE.match(path.name)
            if match and int(match[2]) != part.count:
                path.unlink(missing_ok=True)


class Journal:
    """The lines of a part under way; ``rows``: those that an earlier try left; ``done``: their
    items; ``open_beside``: what is closed with it."""

    def __init__(self, path: Path, made_from: str, rows: list[Row], handle: IO[bytes]) -> None:
        self.path, self._made_from, self._handle = path, made_from, handle
        self.rows = rows
        self.open_beside = ExitStack()
        self.done = {int(row["item"]) for row in rows}

    @classmethod
    def open(cls, path: Path, made_from: str) -> Journal:
        """Go on behind the whole lines of a part that was made from the same, or begin."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a+b")  # noqa: SIM115 - closed by ``__exit__``
        try:
            _lock(handle, path)
        except StageError:
            handle.close()
            raise
        rows, end = _whole_lines(handle, made_from)
        handle.truncate(end)
        if not end:
            handle.write(_line({"made_from": made_from}))
        return cls(path, made_from, rows, handle)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.open_beside.close()
        self._handle.close()

    def add(self, number: int, row: Row) -> None:
        self._handle.write(_line({"item": number, **row}))
        self._handle.flush()

    def sort(self) -> None:
        rows = sorted(_lines(self.path), key=lambda row: row["item"])
        sorted_path = self.path.with_name(self.path.name + ".sorted")
        with open(sorted_path, "wb") as handle:
            handle.write(_line({"made_from": self._made_from}))
            handle.writelines(map(_line, rows))
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(sorted_path, self.path)


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


def _header(path: Path) -> Row:
    with open(path, encoding="utf-8") as handle:
        line = handle.readline()
    return _parsed(line) or {}


def _parsed(line: str) -> Row | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _lines(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8") as handle:
        for number, line in enumerate(islice(handle, 1, None), 2):
            row = _parsed(line)
            if row is None:
                raise StageError(
                    f"{path}, line {number}", "not a row", fix="delete the file, run its part again"
                )
            yield row


def _whole_lines(handle: IO[bytes], made_from: str) -> tuple[list[Row], int]:
    """Rows of a part that was cut short, and the bytes they take, the first line included. Read
    through the handle that holds the lock: closing another one would let go of it."""
    rows: list[Row] = []
    end = 0
    handle.seek(0)
    for line in handle:
        row = _parsed(line.decode(errors="replace")) if line.endswith(b"\n") else None
        if row is None or (not end and row.get("made_from") != made_from):
            break
        if end:
            rows.append(row)
        end += len(line)
    return rows, end


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"
