"""Label stores read in blocks: what a process holds does not grow with the store.

``LabelStore`` maps its arrays; this reads them into memory of its own, a block of samples at a
time, with the distances that stand beside the ids (``distances.npy``, (L,) float32, the Euclidean
distance of the sample to that label's center). S samples, L labels in all.

Raises LabelError where a file is not the array that its store says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ovtrain.schema.arrays import NOT_AN_ARRAY
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import DISTANCES, STORE, read_description

ROWS = 1 << 19
FIX = "assign the labels again with `ovtrain cluster`"


@dataclass(frozen=True)
class Block:
    """n samples in a row and their l labels, nearest center first.

    keys (n,) uint64, counts (n,) int64 labels of each, ids (l,) int32, distances (l,) float32.
    """

    keys: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int32]
    distances: npt.NDArray[np.float32]

    @property
    def owners(self) -> npt.NDArray[np.int64]:
        """Rows of the samples that own a label."""
        return np.flatnonzero(self.counts)

    @property
    def first(self) -> npt.NDArray[np.int64]:
        """Of each owner, where its nearest label stands in ``ids``."""
        return (np.cumsum(self.counts) - self.counts)[self.owners]

    @property
    def last(self) -> npt.NDArray[np.int64]:
        return self.first + self.counts[self.owners] - 1

    def padded(self, width: int) -> npt.NDArray[np.int32]:
        """(n, width) the first ids of each sample, -1 where it owns fewer."""
        out = np.full((len(self.counts), width), -1, dtype=np.int32)
        place = np.arange(len(self.ids)) - np.repeat(
            np.cumsum(self.counts) - self.counts, self.counts
        )
        row, kept = np.repeat(np.arange(len(out)), self.counts), place < width
        out[row[kept], place[kept]] = self.ids[kept]
        return out


class LabelBlocks:
    """A label store's description, and its blocks in the order of their keys."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        about = read_description(self.folder, "labels")
        try:
            self.samples, self.labels = int(about["samples"]), int(about["labels"])
            self.classes, self.fingerprint = int(about["classes"]), str(about["fingerprint"])
        except (KeyError, TypeError, ValueError) as error:
            raise LabelError(str(self.folder / STORE), f"incomplete ({error})", fix=FIX) from error

    def blocks(self, rows: int = ROWS, *, distances: bool = True) -> Iterator[Block]:
        """Blocks of ``rows`` samples; without ``distances`` theirs are empty."""
        with ExitStack() as stack:

            def opened(name: str, dtype: Any, length: int) -> _Column:
                path = self.folder / name
                try:
                    handle = stack.enter_context(open(path, "rb"))
                except OSError as error:
                    raise LabelError(str(path), f"unreadable ({error})", fix=FIX) from error
                return _Column(path, handle, np.dtype(dtype), length)

            keys = opened("keys.npy", np.uint64, self.samples)
            offsets = opened("offsets.npy", np.int64, self.samples + 1)
            ids = opened("ids.npy", np.int32, self.labels)
            far = opened(DISTANCES, np.float32, self.labels) if distances else None
            (at,) = offsets.take(1).tolist() if self.samples else (0,)
            for start in range(0, self.samples, rows):
                count = min(rows, self.samples - start)
                ends = offsets.take(count)
                counts = np.diff(ends, prepend=at)
                labels, at = int(ends[-1]) - at, int(ends[-1])
                if labels < 0 or counts.min() < 0 or at > self.labels:
                    raise LabelError(str(offsets.path), "offsets are not in order", fix=FIX)
                found = ids.take(labels)
                self._check(found, ids.path)
                measured = far.take(labels) if far else np.empty(0, np.float32)
                yield Block(keys.take(count), counts, found, measured)

    def _check(self, ids: npt.NDArray[np.int32], path: Path) -> None:
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.classes:
            found = f"ids from {ids.min()} to {ids.max()}"
            raise LabelError(str(path), found, allowed=f"0 to {self.classes - 1}", fix=FIX)


class _Column:
    """A one-dimensional ``.npy`` file, read from its beginning on."""

    def __init__(self, path: Path, handle: IO[bytes], dtype: np.dtype[Any], length: int) -> None:
        self.path, self.handle, self.dtype = path, handle, dtype
        try:
            version = np.lib.format.read_magic(handle)
            shape, _, found = np.lib.format.read_array_header_1_0(handle)
        except NOT_AN_ARRAY as error:
            raise LabelError(str(path), f"not an array ({error})", fix=FIX) from error
        if (version, shape, found) != ((1, 0), (length,), dtype):
            allowed = f"{dtype} {(length,)}, as its store says"
            raise LabelError(str(path), f"{found} {shape}", allowed=allowed, fix=FIX)

    def take(self, count: int) -> npt.NDArray[Any]:
        """The next ``count`` numbers."""
        found = np.fromfile(self.handle, self.dtype, count)
        if len(found) != count:
            raise LabelError(str(self.path), "is cut short", fix=FIX)
        return found
