"""Top-K nearest centers of every feature -> LabelStore with distances.

Any number of ranks, bounded memory (``clustering.neighbours``). While it runs, ``folder`` holds the
keys of all rows and which segments of them are done; killed, it goes on with the others. At the end
the first rank writes the store, sorted by sample key.

S samples, C centers, F width, K labels each.
"""

from __future__ import annotations

import json
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
from clustering.pace import Pace
from clustering.search import unpack_array
from ovtrain.config.step_plan import split
from ovtrain.distributed.collectives import barrier, broadcast_object
from ovtrain.schema.atomic import write_json
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import write_labels

SEGMENT = 2**16
"""Rows that are done or not."""
SAVE_EVERY = 10.0
"""Seconds of work that an interruption may cost."""
WRITTEN_AT_ONCE = 2**18

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
    try:
        return json.loads((job.folder / STAMP).read_text()) == job.stamp
    except (OSError, ValueError):
        return False  # none, or cut short: it begins anew


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
) -> None:
    """Write the LabelStore of all ``samples`` (hashes of their keys). ``rows`` (S,): the hashes of
    the rows of ``keys`` (S, K). A sample without a usable row owns no label.

    LabelError where two sample keys are equal.
    """
    order = np.argsort(samples, kind="stable")
    hashes = samples[order]
    if len(hashes) > 1 and bool((hashes[1:] == hashes[:-1]).any()):
        raise LabelError("label store", "two sample keys are equal", fix="make keys unique")
    by_hash = np.argsort(rows, kind="stable")
    place = np.searchsorted(rows[by_hash], hashes).clip(max=max(0, len(rows) - 1))
    row = by_hash[place] if len(rows) else np.zeros(len(hashes), np.int64)
    known = rows[row] == hashes if len(rows) else np.zeros(len(hashes), bool)
    row = np.where(known & _usable(keys)[row], row, -1)
    counts = np.where(row >= 0, keys.shape[1], 0)
    write_labels(folder, hashes, counts, _labels(keys, row[row >= 0]), classes, fingerprint)


def _usable(keys: ArrayFile) -> npt.NDArray[np.bool_]:
    starts = range(0, keys.shape[0], WRITTEN_AT_ONCE)
    parts = [keys.read(s, min(WRITTEN_AT_ONCE, keys.shape[0] - s))[:, 0] >= 0 for s in starts]
    return np.concatenate([np.empty(0, bool), *parts])


def _labels(
    keys: ArrayFile, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
    """(ids, distances) of ``rows``, some at a time. The file is mapped: its rows are wanted in the
    order of hashes, and what is mapped goes when others need the memory."""
    mapped = np.load(keys.path, mmap_mode="r")
    for start in range(0, len(rows), WRITTEN_AT_ONCE):
        ids, squared = unpack_array(mapped[rows[start : start + WRITTEN_AT_ONCE]].ravel())
        yield ids, np.sqrt(squared)
