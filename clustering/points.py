"""Features as the k-means sees them: blocks of rows, read ahead, perhaps of unit length.

What holds the rows is a ``Source``: a FeatureStore on disk, or an array. Memory is a few blocks,
whatever the number of rows. Rows that cannot be used (``Survey``) are left out of every block.

S samples, F width, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ovtrain.costs.clustering import BLOCK_NUMBERS
from ovtrain.schema.errors import InputError

Half = npt.NDArray[np.float16]
RowNumbers = npt.NDArray[np.int64]


class Source(Protocol):
    """Rows of float16."""

    @property
    def width(self) -> int: ...

    def __len__(self) -> int: ...

    def rows(self, first: int, count: int, out: Half | None = None) -> Half: ...

    def take(self, rows: RowNumbers, out: Half | None = None) -> Half: ...


@dataclass(frozen=True)
class ArraySource:
    """Rows in memory: (S, F) float16. InputError where they are not: their bits are looked at."""

    array: Half

    def __post_init__(self) -> None:
        if self.array.dtype != np.float16 or self.array.ndim != 2:
            found = f"{self.array.shape} {self.array.dtype}"
            raise InputError("features", found, allowed="(S, F) float16", fix="x.astype('float16')")

    @property
    def width(self) -> int:
        return self.array.shape[1]

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, first: int, count: int, out: Half | None = None) -> Half:
        return self.array[first : first + count]

    def take(self, rows: RowNumbers, out: Half | None = None) -> Half:
        return self.array[rows]


def block_rows(width: int) -> int:
    """Rows of a block; a multiple of 256, which products of matrices like."""
    return max(256, BLOCK_NUMBERS // width // 256 * 256)


def read_ahead(source: Source, first: int, stop: int) -> Iterator[tuple[int, Half]]:
    """(first row, rows) of each block from ``first`` to ``stop``. The next is read while one is
    used; a block is overwritten by the one after the next."""
    size = min(block_rows(source.width), max(1, stop - first))
    buffers = [np.empty((size, source.width), np.float16) for _ in range(2)]
    starts = list(range(first, stop, size))
    with ThreadPoolExecutor(1) as pool:

        def begin(i: int) -> tuple[int, object]:
            start = starts[i]
            count = min(size, stop - start)
            return start, pool.submit(source.rows, start, count, buffers[i % 2])

        pending = begin(0) if starts else None
        for i in range(len(starts)):
            assert pending is not None
            start, future = pending
            found: Half = future.result()  # pyright: ignore[reportAttributeAccessIssue]
            pending = begin(i + 1) if i + 1 < len(starts) else None
            yield start, found


@dataclass(frozen=True)
class Block:
    """Of the rows ``span``, the usable ones: ``rows`` (B,) int64, their numbers; ``x`` (B, F):
    float16, or float32 of unit length."""

    span: range
    rows: RowNumbers
    x: Tensor


@dataclass(frozen=True)
class Points:
    """A source without its unusable rows. ``bad`` (n,) int64, rising."""

    source: Source
    device: torch.device
    spherical: bool
    bad: RowNumbers

    @property
    def width(self) -> int:
        return self.source.width

    def __len__(self) -> int:
        """Rows of the source, usable or not."""
        return len(self.source)

    @property
    def usable(self) -> int:
        return len(self.source) - len(self.bad)

    def blocks(self, first: int, stop: int) -> Iterator[Block]:
        for start, rows in read_ahead(self.source, first, stop):
            span = range(start, start + len(rows))
            yield Block(span, *self._good(np.arange(span.start, span.stop), rows))

    def take(self, rows: RowNumbers) -> Tensor:
        """(n, F) of usable rows in any order."""
        order = np.argsort(rows, kind="stable")
        found = np.empty((len(rows), self.width), np.float16)
        found[order] = self.source.take(rows[order])
        return self._seen(found)

    def is_bad(self, rows: RowNumbers) -> npt.NDArray[np.bool_]:
        if not len(self.bad):
            return np.zeros(len(rows), bool)
        at = np.searchsorted(self.bad, rows).clip(max=len(self.bad) - 1)
        return self.bad[at] == rows

    def _good(self, numbers: RowNumbers, rows: Half) -> tuple[RowNumbers, Tensor]:
        keep = ~self.is_bad(numbers)
        if keep.all():
            return numbers, self._seen(rows)
        return numbers[keep], self._seen(rows[keep])

    def _seen(self, rows: Half) -> Tensor:
        x = torch.from_numpy(rows).to(self.device)
        return unit_rows(x) if self.spherical else x


def unit_rows(x: Tensor) -> Tensor:
    """(B, F) -> float32 of length 1; a row's numbers do not depend on the others."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=1, keepdim=True, dtype=torch.float64)
    return wide / length.float()


def digests_of(points: Points, rows: RowNumbers) -> npt.NDArray[np.uint64]:
    """(n,) of usable rows, a block of them in memory at a time."""
    size = block_rows(points.width)
    parts = [digests(points.take(rows[i : i + size])) for i in range(0, len(rows), size)]
    return np.concatenate([np.empty(0, np.uint64), *parts])


def digests(x: Tensor) -> npt.NDArray[np.uint64]:
    """(B,) a hash of each row's numbers: equal rows, equal hashes."""
    rows = np.ascontiguousarray((x + 0.0).cpu().numpy())  # -0 is 0
    found = [blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(found), dtype=np.uint64)
