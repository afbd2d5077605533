"""Manifests of stages: work that may be split over tasks, interrupted, and done once.

    OUT/manifests/STAGE/part-00003-of-00016.jsonl

A stage has n items; part i of c does the items i, i + c, i + 2c, ... and writes one line for each,
``{"item": number, ...}``. The next stage reads the parts together, in the order of the items, so
that how a stage was split changes nothing behind it. The first line of a part says what it was made
from, the rows of the stage before among it; a part that is there, made from the same, is not made
again. Lines are appended as items end and the file takes its name when all are there: a part that
was cut short goes on behind them.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data_pipelines.journal import DIGESTS, Journal, Row, StageError, read_header, read_rows
from ovtrain.schema.isolated import DIED, OUT_OF_MEMORY, TIMED_OUT, category

MANIFESTS = "manifests"
PARTIAL = ".partial"
GONE = "not there any more"
"""Of a file that was there when the inventory was taken."""
PASSING = frozenset({TIMED_OUT, DIED, OUT_OF_MEMORY, GONE})
"""Why something failed that may succeed another time."""
PART = re.compile(r"(\d+)/(\d+)")
FILE = re.compile(r"part-(\d{5})-of-(\d{5})\.jsonl")

Item = TypeVar("Item")


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

    def is_there(self, part: Part, made_from: str) -> bool:
        """Whether a part was made from this; any split of the whole serves for the whole."""
        if part == Part():
            found = _split(self.folder)
            whole = bool(found) and len(found) == _count(found[0].name)
            return whole and all(read_header(path)["made_from"] == made_from for path in found)
        path = self.folder / part.file
        return path.is_file() and read_header(path)["made_from"] == made_from

    def made_from(self) -> str:
        """What all parts were made from. Raises StageError where parts are missing or differ."""
        paths = self._parts()
        found = {path.name: read_header(path)["made_from"] for path in paths}
        if len(set(found.values())) > 1:
            first = found[paths[0].name]
            others = [name for name, value in found.items() if value != first]
            raise StageError(
                str(self.folder),
                f"{', '.join(others[:5])} made from other files or settings than {paths[0].name}",
                fix=f"run --stage {self.name} again for all parts",
            )
        return found[paths[0].name]

    def content(self) -> str:
        """Hash of what all rows say, whatever the split. Raises StageError."""
        digests = (int(read_header(path)["digest"], 16) for path in self._parts())
        return f"{sum(digests) % DIGESTS:032x}"

    def rows(self) -> Iterator[Row]:
        """All rows in the order of their items. Raises StageError where a part is missing."""
        return heapq.merge(*map(read_rows, self._parts()), key=lambda row: row["item"])

    def _parts(self) -> list[Path]:
        found = {path.name: path for path in _split(self.folder)}
        if not found:
            raise StageError(
                str(self.folder), "nothing here yet", fix=f"run --stage {self.name} first"
            )
        count = _count(next(iter(found)))
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
        make: Callable[[Journal, Iterator[tuple[int, Item]]], Iterable[tuple[int, Row]]],
    ) -> None:
        """Do a part: ``make`` is given the items that are left, with their numbers, and yields a
        row for each as it ends. Raises StageError where the stage is split in another way."""
        self._check_split(part, made_from)
        with Journal.open(self.folder / (part.file + PARTIAL), made_from) as journal:
            mine = (
                (number, item)
                for number, item in enumerate(items)
                if number % part.count == part.number and number not in journal.done
            )
            for number, row in make(journal, mine):
                journal.add(number, row)
            journal.finish(self.folder / part.file)
        for path in self.folder.glob("part-*.jsonl"):
            if FILE.fullmatch(path.name) and _count(path.name) != part.count:
                path.unlink(missing_ok=True)  # made from something else

    def _check_split(self, part: Part, made_from: str) -> None:
        for path in _split(self.folder):
            if _count(path.name) != part.count and read_header(path)["made_from"] == made_from:
                number = f"{part.number}/{_count(path.name)}"
                raise StageError(
                    str(self.folder),
                    f"split in {_count(path.name)} parts already, not in {part.count}",
                    fix=f"do a part of that with --part {number}, or delete this folder",
                )

    def forget_failures(self) -> int:
        """Have rows of items that failed for want of time, memory or storage made again by the next
        run; how many there are."""
        count = 0
        for path in _split(self.folder):
            rows = list(read_rows(path))
            kept = [row for row in rows if not _failed(row)]
            if len(kept) < len(rows):
                partial = path.with_name(path.name + PARTIAL)
                partial.unlink(missing_ok=True)
                with Journal.open(partial, read_header(path)["made_from"]) as journal:
                    for row in kept:
                        journal.add(row.pop("item"), row)
                path.unlink()
                count += len(rows) - len(kept)
        return count


def may_pass(reason: str) -> bool:
    """Whether what failed for this reason may succeed another time."""
    return category(reason) in PASSING


def _failed(row: Row) -> bool:
    return any(may_pass(reason) for _, reason in row.get("skipped", ()))


def _split(folder: Path) -> list[Path]:
    """The parts of the split that is there, in order; of several, of the one with most."""
    found = sorted(path for path in folder.glob("part-*.jsonl") if FILE.fullmatch(path.name))
    most = max((_count(path.name) for path in found), default=0)
    return [path for path in found if _count(path.name) == most]


def _count(name: str) -> int:
    return int(name.split("-of-")[1][:5])
