"""The reference of ``ovtrain.ops.nearest`` in torch, on any device.

Points and centers are taken relative to mu, the mean of the centers, so that an offset that all
share costs no accuracy. With x, c so centred and xb, cb rounded to bfloat16 (or left as they are),
the score of a center is s = x.c - |c|^2 / 2 = (|x|^2 - distance^2) / 2 and its approximation is
xb.cb - |c|^2 / 2 in float32, which is wrong by at most (Cauchy-Schwarz)

    |x - xb| max|c| + |xb| max|c - cb| + the rounding of the sums.

The best few scores are ranked by their float32 distances. A row is certain when a center with the
last score that was kept, improved by that error, would still lie beyond the last one returned.

B points, C centers, F width, m candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ovtrain.ops.matmul import products_in

LARGEST = 1e37
LANES = 64
"""Partial sums of a distance; see ``squared_distances``."""
UNIT = 2.0**-24  # of rounding to float32
MARGIN = 1 + 1e-6  # for sums of bounds, which are float64
SCORES = {"cpu": 2**24, "cuda": 2**28}
DIFFERENCES = {"cpu": 2**21, "cuda": 2**28}
"""How many numbers are made at a time."""
CENTERS = 16_384  # of one product


def candidates_for(top: int, dtype: torch.dtype) -> int:
    """How many: of 10,000 random unit centers of width 1024, 16 lie within the error of a bfloat16
    score of the tenth, and 24 where they lie close."""
    return 10 + 11 * top // 5 if dtype == torch.bfloat16 else 10 + 5 * top // 4


def squared_distances(points: Tensor, centers: Tensor) -> Tensor:
    """Sums over the last axis of (x - c)^2, both float32 and broadcast.

    Every operation is rounded. Element i is added to partial sum i mod 64, in order; halves of the
    partial sums are added until one is left. So all backends agree in every bit.
    """
    differences = points - centers
    differences *= differences
    width = differences.shape[-1]
    sums = differences.new_zeros((*differences.shape[:-1], LANES))
    for first in range(0, width, LANES):
        part = differences[..., first : first + LANES]
        sums[..., : part.shape[-1]] += part
    half = LANES // 2
    while half:
        sums = sums[..., :half] + sums[..., half : 2 * half]
        half //= 2
    return sums[..., 0]


def distance_error(width: int) -> float:
    """Relative error of ``squared_distances``: the difference twice, the square, the sums."""
    return (math.ceil(width / LANES) + 10) * UNIT


def keys_of(squared: Tensor, ids: Tensor) -> Tensor:
    """int64 that sort by distance, then by id. (The bits of numbers that are not negative do.)"""
    return (squared.view(torch.int32).long() & 0x7FFFFFFF) << 32 | ids


def from_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """ids int32 and squared distances float32."""
    return (keys & 0xFFFFFFFF).int(), (keys >> 32).int().view(torch.float32)


def lowest(keys: Tensor, top: int) -> Tensor:
    return keys.topk(top, dim=1, largest=False, sorted=True).values


@dataclass(frozen=True)
class Candidates:
    """``ids`` (B, m); no center that is left out has a score above ``beyond`` (B,), which has lost
    ``cut`` of its size. None where all centers are candidates."""

    ids: Tensor
    beyond: Tensor | None
    cut: float = 0.0


@dataclass(frozen=True)
class Centred:
    """Centers relative to their ``mean`` (F,) for approximate scores: ``rounded`` (C, F), ``bias``
    (C,), ``longest`` = max |c| and ``off`` = max |c - rounded|."""

    mean: Tensor
    rounded: Tensor
    bias: Tensor
    longest: float
    off: float

    @classmethod
    def of(cls, centers: Tensor, dtype: torch.dtype) -> Centred:
        mean = centers.mean(0, dtype=torch.float64).float()
        centred = centers - mean
        length = norms(centred)
        rounded = centred.to(dtype)
        wide = rounded.float()
        off = norms(centred - wide)
        longest = float(length.max())
        return cls(
            mean,
            rounded,
            (length.square() * -0.5).float(),
            longest * MARGIN,
            float(off.max()) + longest * UNIT,  # centred is rounded itself
        )

    def errors(self, length: Tensor, off: Tensor, cut: float) -> Tensor:
        """Bounds (B,) of the errors of scores of points with |x| = ``length``, |x - xb| = ``off``;
        scores have lost ``cut`` of their size. Sums of tensor cores are cut, not rounded, which the
        factor of 4 covers. Infinite where products may leave float32."""
        width = self.rounded.shape[1]
        most = self.longest + self.off
        rounded = length + off  # >= |xb|
        operands = (off + UNIT * length) * self.longest + rounded * self.off
        sums = 4 * UNIT * width * rounded * most
        bias = 4 * UNIT * self.longest**2 + 2 * UNIT * rounded * most
        tiny = width * 2.0**-120 * (1 + rounded + most)  # subnormal numbers may count as 0
        lost = cut * (rounded + most) * most
        bound = (operands + sums + bias + tiny + lost) * MARGIN
        return bound.masked_fill((rounded + most).square() > LARGEST, torch.inf)

    def scores(self, points: Tensor, centers: slice) -> Tensor:
        rounded = self.rounded[centers]
        if rounded.dtype == torch.float32:
            with products_in("ieee", points.device.type):
                out = points @ rounded.T
        elif points.is_cuda:
            out = torch.mm(points, rounded.T, out_dtype=torch.float32)
        else:
            with products_in("bf16"):
                out = points.float() @ rounded.float().T
        return out.add_(self.bias[centers])


def norms(rows: Tensor) -> Tensor:
    """(n,) float64"""
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


class TorchSearch:
    """See ``ovtrain.ops.nearest``; candidates are found in ``dtype``, then in float32, then all
    centers are."""

    def __init__(self, centers: Tensor, dtype: torch.dtype) -> None:
        self.centers, self.dtype = centers, dtype
        self.first = Centred.of(centers, dtype)
        kind = centers.device.type
        self._scores = SCORES.get(kind, SCORES["cpu"])
        self._differences = DIFFERENCES.get(kind, DIFFERENCES["cpu"])

    @cached_property
    def second(self) -> Centred:
        return Centred.of(self.centers, torch.float32)

    def __call__(self, points: Tensor, top: int) -> tuple[Tensor, Tensor, int]:
        keys = points.new_empty((len(points), top), dtype=torch.int64)
        repeated = 0
        block = max(self._scores // min(len(self.centers), CENTERS), 1)
        for first in range(0, len(points), block):
            rows = slice(first, first + block)
            keys[rows], again = self._block(points[rows].float(), top)
            repeated += again
        return *from_keys(keys), repeated

    def _block(self, points: Tensor, top: int) -> tuple[Tensor, int]:
        keys, certain = self._candidates(self.first, points, top)
        left = (~certain).nonzero()[:, 0]
        repeated = len(left)
        if repeated and self.dtype != torch.float32:
            keys[left], certain = self._candidates(self.second, points[left], top)
            left = left[~certain]
        if len(left):
            keys[left] = self._all(points[left], top)
        return keys, repeated

    def _candidates(self, centred: Centred, points: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """keys (B, top) and whether each row is certain."""
        x = points - centred.mean
        rounded = x.to(centred.rounded.dtype)
        count = min(candidates_for(top, rounded.dtype), len(self.centers))
        found = self._best(centred, rounded, count)
        keys = lowest(self._ranked(points, found.ids), top)
        if found.beyond is None:
            return keys, keys.new_ones(len(keys), dtype=torch.bool)
        length = norms(x)
        errors = centred.errors(length, norms(x - rounded.float()), found.cut)
        least = length.square() * (1 - 8 * UNIT) - 2 * (found.beyond.double() + errors)
        _, squared = from_keys(keys[:, -1])
        error = distance_error(points.shape[1])
        tiny = points.shape[1] * 2.0**-148
        return keys, least > squared.double() * (1 + 3 * error) + tiny

    def _best(self, centred: Centred, points: Tensor, count: int) -> Candidates:
        """The ``count`` centers of the best scores."""
        score, ids = points.new_empty(len(points), 0, dtype=torch.float32), None
        for first in range(0, len(self.centers), CENTERS):
            block = centred.scores(points, slice(first, first + CENTERS))
            best, at = block.topk(min(count, block.shape[1]), dim=1)
            at = at + first
            if ids is not None:
                best, at = torch.cat([score, best], 1), torch.cat([ids, at], 1)
                best, order = best.topk(min(count, best.shape[1]), dim=1)
                at = at.gather(1, order)
            score, ids = best, at
        assert ids is not None
        return Candidates(ids, score[:, -1] if count < len(self.centers) else None)

    def _ranked(self, points: Tensor, ids: Tensor) -> Tensor:
        """Keys of candidates ``ids`` (B, m)."""
        block = max(self._differences // (ids.shape[1] * points.shape[1]), 1)
        parts = [
            squared_distances(x[:, None], self.centers[at])
            for x, at in zip(points.split(block), ids.split(block), strict=True)
        ]
        return keys_of(torch.cat(parts) if parts else ids.float(), ids)

    def _all(self, points: Tensor, top: int) -> Tensor:
        """keys (B, top) of the nearest of all centers."""
        ids = torch.arange(len(self.centers), device=points.device)
        block = max(self._differences // points.shape[1], top)
        rows = []
        for point in points:
            parts = [
                lowest(keys_of(squared_distances(point, c), at)[None], min(top, len(at)))
                for c, at in zip(self.centers.split(block), ids.split(block), strict=True)
            ]
            rows.append(lowest(torch.cat(parts, 1), top))
        return torch.cat(rows)
