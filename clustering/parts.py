"""Parts of a feature pass: which samples each holds, and the file of one that is being filled.

Part p holds samples p * part_samples to (p + 1) * part_samples - 1 of the shards, in their order: a
function of the manifest and of ``part_samples``, so that any task can make any part. Its stamp says
what it is made of; what bears another stamp is never gone on with.

``part-00000.STAMP.partial`` is a mask of one byte per sample (1: its row is on disk), then all
rows, (n, F) float16. It appears whole, so that two tasks that fill one part by mistake write the
same bytes to the same places.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clustering.teachers import Teacher
from ovtrain.schema.atomic import atomic_open, naming
from ovtrain.schema.errors import LabelError
from ovtrain.schema.features import HALF, Part, Rows
from ovtrain.schema.manifest import ShardManifest

PARTIAL = ".partial"
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PartPlan:
    """``count`` samples from ``first`` on."""

    name: str
    first: int
    count: int
    stamp: str

    def finished(self, folder: Path) -> Part | None:
        """The part, where it is there and of this stamp."""
        try:
            part = Part.read(folder, self.name)
        except LabelError:  # its description is damaged
            return None
        if part is None or part.stamp != self.stamp or not part.is_there(folder):
            return None
        return part


def plan_parts(manifest: ShardManifest, teacher: Teacher, part_samples: int) -> list[PartPlan]:
    """All parts of a pass, in order."""
    about = (manifest.fingerprint, manifest.content, teacher.name, teacher.width)
    plans = list[PartPlan]()
    for number, first in enumerate(range(0, manifest.samples, part_samples)):
        count = min(part_samples, manifest.samples - first)
        stamp = sha256(json.dumps([*about, first, count]).encode()).hexdigest()[:32]
        plans.append(PartPlan(f"part-{number:05d}", first, count, stamp))
    return plans


class Partial:
    """A part that is being filled. Rows are numbered within the part."""

    def __init__(self, folder: Path, plan: PartPlan, width: int) -> None:
        self.path = folder / f"{plan.name}.{plan.stamp}{PARTIAL}"
        self.count, self.width = plan.count, width
        size = plan.count + plan.count * width * HALF.itemsize
        if not self.path.is_file() or self.path.stat().st_size != size:
            with atomic_open(self.path) as handle:
                handle.truncate(size)
        self._file = os.open(self.path, os.O_RDWR)
        mask = os.pread(self._file, plan.count, 0)
        self.done = np.frombuffer(mask, np.uint8).astype(np.bool_)
        """(n,): whose rows are on disk."""

    def write(self, rows: Indices, features: Rows) -> None:
        """Rows before their mask, and that at once: a crash in between repeats the work on all of
        them and loses none."""
        if not len(rows):
            return
        stride = self.width * HALF.itemsize
        for run in _runs(rows):
            data = np.ascontiguousarray(features[run], HALF)
            self._put(data.tobytes(), self.count + int(rows[run.start]) * stride)
        os.fdatasync(self._file)
        self.done[rows] = True
        first, last = int(rows[0]), int(rows[-1])
        self._put(self.done[first : last + 1].tobytes(), first)

    def good(self) -> tuple[Indices, Rows]:
        """Rows on disk and what they hold, (m,) and (m, F): a part in memory."""
        rows = np.flatnonzero(self.done)
        found = np.empty((len(rows), self.width), HALF)
        stride = self.width * HALF.itemsize
        for run in _runs(rows):
            self._get(found[run], self.count + int(rows[run.start]) * stride)
        return rows, found

    def close(self) -> None:
        os.close(self._file)

    def _put(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        with naming(self.path):
            while view:
                wrote = os.pwrite(self._file, view, at)
                view, at = view[wrote:], at + wrote

    def _get(self, out: Rows, at: int) -> None:
        view = out.view(np.uint8).reshape(-1).data
        while len(view):
            got = os.preadv(self._file, [view], at)
            assert got, f"{self.path} was cut short"
            view, at = view[got:], at + got


def _runs(rows: Indices) -> list[slice]:
    """Slices of ``rows`` (rising) that are neighbours."""
    if not len(rows):
        return []
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return [slice(start, stop) for start, stop in pairwise(edges)]
