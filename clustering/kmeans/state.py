"""What a k-means keeps from one iteration to the next: centers, assignment, progress.

On disk, in a folder of its own::

    state.json                    Progress; written last, so that it is true of the files it names
    centers-0.npy, centers-1.npy  (C, F) float32; an iteration reads one and writes the other
    nearest-0.npy, nearest-1.npy  (S,) int64 keys (``clustering.search.pack``), -1 of unused rows
    best.npy                      (C, F) the best of the finished restarts

All ranks write their parts of one file: they share a file system. Killed at any moment, a run goes
on from ``state.json`` to the bit, on any number of ranks, since sums are exact. In memory, for
small problems, the same arrays without files.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clustering.kmeans.array_file import ArrayFile
from clustering.stages import read_record
from ovtrain.distributed.collectives import barrier, broadcast_object
from ovtrain.distributed.context import World
from ovtrain.schema.atomic import write_json

STATE, BEST = "state.json", "best.npy"


@dataclass
class Progress:
    """``iteration`` counts updates done; -1: no centers yet. ``slot``: the arrays that hold
    the centers. ``rows``: one of each iteration, for ``convergence.jsonl``. ``objective``: of the
    best finished restart."""

    restart: int = 0
    iteration: int = -1
    slot: int = 0
    done: bool = False
    best: int = -1
    objective: float = float("inf")
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class Array(Protocol):
    def read(self, first: int, count: int) -> npt.NDArray[Any]: ...

    def write(self, first: int, array: npt.NDArray[Any]) -> None: ...

    def sync(self) -> None: ...


class State(Protocol):
    progress: Progress

    def centers(self, slot: int) -> Array: ...

    def nearest(self, slot: int) -> Array: ...

    def save(self) -> None:
        """Collective: what was written is on disk, and ``progress`` says so."""
        ...

    def keep_best(self) -> None:
        """Collective: the centers of ``progress.slot`` are the best so far."""
        ...


class MemoryArray:
    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array

    def read(self, first: int, count: int) -> npt.NDArray[Any]:
        return self.array[first : first + count]

    def write(self, first: int, array: npt.NDArray[Any]) -> None:
        self.array[first : first + len(array)] = array

    def sync(self) -> None:
        pass


class MemoryState:
    """Of one process."""

    def __init__(self, samples: int, clusters: int, width: int) -> None:
        self.progress = Progress()
        self._centers = [MemoryArray(np.zeros((clusters, width), np.float32)) for _ in range(2)]
        self._nearest = [MemoryArray(np.full(samples, -1, np.int64)) for _ in range(2)]
        self.best = self._centers[0].array

    def centers(self, slot: int) -> MemoryArray:
        return self._centers[slot]

    def nearest(self, slot: int) -> MemoryArray:
        return self._nearest[slot]

    def save(self) -> None:
        pass

    def keep_best(self) -> None:
        self.best = self._centers[self.progress.slot].array.copy()


class FolderState:
    """Of all ranks. ``stamp``: what the centers are made from; files of another are replaced."""

    def __init__(
        self, folder: Path, stamp: str, samples: int, clusters: int, width: int, world: World
    ) -> None:
        self.folder, self.stamp, self.world = folder, stamp, world
        shapes = {"centers": (np.float32, (clusters, width)), "nearest": (np.int64, (samples,))}
        known = self._known() if world.is_main else None
        if world.is_main and known is None:
            shutil.rmtree(folder, ignore_errors=True)
            for name, (dtype, shape) in shapes.items():
                for slot in range(2):
                    ArrayFile.create(folder / f"{name}-{slot}.npy", dtype, shape)
        self.progress: Progress = broadcast_object(known or Progress(), world.group)
        self._arrays = {
            f"{name}-{slot}": ArrayFile(folder / f"{name}-{slot}.npy", dtype, shape)
            for name, (dtype, shape) in shapes.items()
            for slot in range(2)
        }

    def _known(self) -> Progress | None:
        value = read_record(self.folder / STATE)
        if value is None or value["stamp"] != self.stamp:
            return None
        return Progress(**value["progress"])

    @property
    def best(self) -> Path:
        return self.folder / BEST

    def centers(self, slot: int) -> ArrayFile:
        return self._arrays[f"centers-{slot}"]

    def nearest(self, slot: int) -> ArrayFile:
        return self._arrays[f"nearest-{slot}"]

    def _written(self) -> None:
        for array in self._arrays.values():
            array.sync()
        barrier(self.world.group)
        for array in self._arrays.values():
            array.reopen()

    def save(self) -> None:
        self._written()
        if self.world.is_main:
            about = {"stamp": self.stamp, "progress": asdict(self.progress)}
            write_json(self.folder / STATE, about)
        barrier(self.world.group)

    def keep_best(self) -> None:
        self._written()
        if self.world.is_main:
            copy = self.folder / f".{BEST}.tmp"
            shutil.copyfile(self.folder / f"centers-{self.progress.slot}.npy", copy)
            copy.replace(self.best)
        barrier(self.world.group)

    def close(self) -> None:
        for array in self._arrays.values():
            array.close()
