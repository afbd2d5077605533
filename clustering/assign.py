"""Top-K nearest centers of every feature -> LabelStore with distances.

Any number of ranks, bounded memory (``clustering.neighbours``). While it runs, ``folder`` holds the
keys of all rows and which segments of them are done; killed, it goes on with the others. At the end
the first rank writes the store, sorted by sample key.

S samples, C centers, F width, K labels each.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clustering.kmeans.array_file import ArrayFile
from clustering.kmeans.state import Array
from clustering.neighbours import Layout, Neighbours, Table
from clustering.progress import Pace
from clustering.search import unpack_array
from clustering.stages import read_record
from ovtrain.config.step_plan import split
from ovtrain.distributed.collectives import barrier, broadcast_object
from ovtrain.schema.atomic import write_json
from ovtrain.schema.labels import LabelBlock, write_labels

SEGMENT = 2**16
"""Rows that are done or not."""
SAVE_EVERY = 10.0
"""Seconds of work that an interruption may cost."""
WRITTEN_AT_ONCE, JOINED_AT_ONCE = 2**16, 2**26

KEYS, DONE, STAMP = "keys.npy", "done.npy", "stamp.json"


@dataclass(frozen=True)
class Labelling:
    """``stamp``: digest of the features, the centers and how they are searched."""

    neighbours: Neighbours
    centers: Table
    top: int
    folder: Path
    stamp: str
    say: Callable[[str], None]

    @property
    def layout(self) -> Layout:
        return self.neighbours.layout


def label_all(job: Labelling) -> ArrayFile:
    """Collective: the keys (S, K) of all rows; -1 for a row that cannot be used."""
    samples, world = len(job.neighbours.points), job.layout.grid.world
    segments = -(-samples // SEGMENT)
    shapes = {KEYS: (np.int64, (samples, job.top)), DONE: (np.uint8, (segments,))}
    if world.is_main and not _is_of(job):
        shutil.rmtree(job.folder, ignore_errors=True)
        for name, (dtype, shape) in shapes.items():
            ArrayFile.create(job.folder / name, dtype, shape)
        write_json(job.folder / STAMP, job.stamp)
    barrier(world.group)
    keys, done = (ArrayFile(job.folder / n, *shape) for n, shape in shapes.items())
    before = broadcast_object(done.read(0, segments) if world.is_main else None, world.group)
    grid = job.layout.grid
    own = split(segments, grid.outer, grid.outer_size)
    missing = [range(a, b) for a, b in _runs(before[own.start : own.stop] == 0, own.start)]
    rows = [range(s.start * SEGMENT, min(s.stop * SEGMENT, samples)) for s in missing]
    pace = Pace(sum(map(len, rows)), "labels", job.say)
    marks = _Marks(keys, done, samples, write=job.layout.first_inner)
    for some in rows:
        for block, found in job.neighbours.keys(job.centers, job.top, some, pace.step):
            whole = np.full((len(block.span), job.top), -1, np.int64)
            whole[block.rows - block.span.start] = found.cpu().numpy()
            marks.add(block.span, whole)
    marks.save()
    done.close()
    barrier(world.group)
    return keys


def _is_of(job: Labelling) -> bool:
    return read_record(job.folder / STAMP) == job.stamp


def _runs(missing: npt.NDArray[np.bool_], first: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], missing, [False]]).astype(np.int8)))
    for a, b in edges.reshape(-1, 2).tolist():
        yield first + a, first + b


class _Marks:
    """Writes keys, and now and then which segments are on disk; the keys before their mark."""

    def __init__(self, keys: Array, done: Array, samples: int, *, write: bool) -> None:
        self.keys, self.done, self.samples, self.write = keys, done, samples, write
        self.finished: list[int] = []
        self.saved = time.monotonic()

    def add(self, span: range, found: npt.NDArray[np.int64]) -> None:
        if not self.write:
            return
        self.keys.write(span.start, found)
        ends = range(span.start // SEGMENT, -(-span.stop // SEGMENT))
        self.finished += [s for s in ends if min((s + 1) * SEGMENT, self.samples) <= span.stop]
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        self.keys.sync()
        for segment in self.finished:
            self.done.write(segment, np.ones(1, np.uint8))
        self.done.sync()
        self.finished, self.saved = [], time.monotonic()


def store_labels(
    folder: Path,
    samples: npt.NDArray[np.uint64],
    rows: npt.NDArray[np.uint64],
    keys: ArrayFile,
    classes: int,
    fingerprint: str,
    at_once: int = JOINED_AT_ONCE,
) -> dict[str, int]:
    """Write the LabelStore of all ``samples`` (hashes of their keys); how many samples and labels
    it holds. ``rows`` (S,): the hashes of the rows of ``keys`` (S, K). A sample without a usable
    row owns no label. Hashes are joined a range at a time, about ``at_once`` of them.

    LabelError where two sample keys are equal.
    """
    parts = -(-len(samples) // at_once)
    edges = [2**64 * i // parts for i in range(1, parts)]
    lows = [np.uint64(0), *map(np.uint64, edges)]
    highs = [*lows[1:], None]

    def blocks() -> Iterator[LabelBlock]:
        for low, high in zip(lows, highs, strict=True):
            hashes = np.sort(samples[_inside(samples, low, high)])
            own = np.flatnonzero(_inside(rows, low, high))
            row = _row_of(hashes, rows[own], own)
            for start in range(0, len(hashes), WRITTEN_AT_ONCE):
                some = slice(start, start + WRITTEN_AT_ONCE)
                yield _block(hashes[some], row[some], keys)

    return write_labels(folder, blocks(), classes, fingerprint)


def _inside(
    hashes: npt.NDArray[np.uint64], low: np.uint64, high: np.uint64 | None
) -> npt.NDArray[np.bool_]:
    inside = hashes >= low
    return inside if high is None else inside & (hashes < high)


def _row_of(
    hashes: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint64], numbers: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Of each hash its row's number, -1 where it has none."""
    if not len(rows):
        return np.full(len(hashes), -1)
    order = np.argsort(rows, kind="stable")
    place = order[np.searchsorted(rows[order], hashes).clip(max=len(rows) - 1)]
    return np.where(rows[place] == hashes, numbers[place], -1)


def _block(
    hashes: npt.NDArray[np.uint64], row: npt.NDArray[np.int64], keys: ArrayFile
) -> LabelBlock:
    found = np.full((len(row), keys.shape[1]), -1, np.int64)
    found[row >= 0] = keys.take(row[row >= 0])
    usable = found[:, 0] >= 0
    ids, squared = unpack_array(found[usable].ravel())
    return LabelBlock(hashes, np.where(usable, keys.shape[1], 0), ids, np.sqrt(squared))
