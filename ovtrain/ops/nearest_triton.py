# ruff: noqa: ANN001, ANN202 (in a kernel's signature annotations are instructions to Triton)
# pyright: reportArgumentType=false, reportCallIssue=false, reportInvalidTypeForm=false
"""Exact nearest centers on a GPU: the search of ``nearest_torch`` with two kernels of its own.

A product of points and centers leaves three numbers for each point and GROUP centers: the two best
scores, as integers that sort like them with the center's place in the lowest bits, and the third.
So scores are never in memory and few are sorted; the thirds are what certificates need to know of
centers that were left out. Distances of candidates are taken where they lie, in the reference's
order. With TRITON_INTERPRET=1 set before the first import of triton both run on CPU tensors: that,
and compilation for sm_90, is what has been tested; no GPU has run them.

B points, C centers, F width, G groups, m candidates.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from ovtrain.ops.nearest_torch import LANES, Candidates, Centred, TorchSearch, keys_of

GROUP = tl.constexpr(32)
CUT = GROUP.value * 2.0**-23
"""Of a score: its lowest bits give way to a place in a group."""
DEPTH = 64
"""Columns multiplied at a time; widths are padded to it."""
CANDIDATES = 16  # of one program that takes distances


class TritonSearch(TorchSearch):
    """See ``ovtrain.ops.nearest``."""

    def __init__(self, centers: Tensor) -> None:
        super().__init__(centers, torch.bfloat16)
        # Triton's interpreter multiplies no bfloat16.
        self._type = torch.bfloat16 if centers.is_cuda else torch.float32
        self._padded = self._pad(self.first.rounded)

    def _best(self, centred: Centred, points: Tensor, count: int) -> Candidates:
        groups = triton.cdiv(len(self.centers), GROUP.value)
        if centred is not self.first or count > groups:
            return super()._best(centred, points, count)
        best = best_of_groups(self._pad(points), self._padded, centred.bias)
        codes, at = best[:, :2].flatten(1).topk(count, dim=1)
        beyond = torch.maximum(codes[:, -1], best[:, 2].amax(1))
        ids = at % groups * GROUP.value + (codes & (GROUP.value - 1))
        return Candidates(ids, scores_of(beyond), CUT)

    def _pad(self, rows: Tensor) -> Tensor:
        return pad(rows.to(self._type), (0, -rows.shape[1] % DEPTH)).contiguous()

    def _ranked(self, points: Tensor, ids: Tensor) -> Tensor:
        return keys_of(distances(points, self.centers, ids), ids)


def best_of_groups(points: Tensor, centers: Tensor, bias: Tensor) -> Tensor:
    """(B, 3, G) int32: codes of the best, second and third score of each group; ``points`` (B, F)
    and ``centers`` (C, F) of one type, ``bias`` (C,) float32, F a multiple of DEPTH."""
    count, clusters = len(points), len(centers)
    groups = triton.cdiv(clusters, GROUP.value)
    out = torch.empty(count, 3, groups, dtype=torch.int32, device=points.device)
    rows, columns = 128, 128
    grid = (triton.cdiv(count, rows), triton.cdiv(clusters, columns))
    if count:
        _best_of_groups[grid](
            points,
            centers,
            bias,
            out,
            count,
            clusters,
            points.shape[1],
            groups,
            ROWS=rows,
            COLUMNS=columns,
            DEPTH=DEPTH,
            num_warps=8,
            num_stages=3,
            enable_fp_fusion=False,
        )
    return out


def scores_of(codes: Tensor) -> Tensor:
    """float32; the place counts as 0."""
    bits = codes & -GROUP.value
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def distances(points: Tensor, centers: Tensor, ids: Tensor) -> Tensor:
    """``squared_distances`` (B, m) of points (B, F) and centers ``ids`` (B, m)."""
    count, candidates = ids.shape
    out = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
    grid = (count, triton.cdiv(candidates, CANDIDATES))
    if count:
        _distances[grid](
            points,
            centers,
            ids.contiguous(),
            out,
            candidates,
            points.shape[1],
            CANDIDATES=CANDIDATES,
            LANES=LANES,
            num_warps=4,
            enable_fp_fusion=False,  # each operation is rounded
        )
    return out


@triton.jit
def _best_of_groups(
    points,
    centers,
    bias,
    out,
    count,
    clusters,
    width,
    groups,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    left = points + tl.minimum(row, count - 1)[:, None] * width + depth[None, :]
    right = centers + tl.minimum(column, clusters - 1)[None, :] * width + depth[:, None]
    scores = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    for start in range(0, width, DEPTH):
        scores = tl.dot(tl.load(left + start), tl.load(right + start), scores)
    scores += tl.load(bias + column, mask=column < clusters, other=float("-inf"))[None, :]
    bits = scores.to(tl.int32, bitcast=True)
    codes = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # sort like the scores
    codes = (codes & -GROUP) | (column % GROUP).to(tl.int32)[None, :]
    codes = tl.reshape(codes, [ROWS, COLUMNS // GROUP, GROUP])
    group = tl.program_id(1) * (COLUMNS // GROUP) + tl.arange(0, COLUMNS // GROUP)
    inside = (row < count)[:, None] & (group < groups)[None, :]
    at = out + row[:, None] * 3 * groups + group[None, :]
    for rank in tl.static_range(3):  # pyright: ignore[reportGeneralTypeIssues]
        best = tl.max(codes, 2)
        tl.store(at + rank * groups, best, inside)
        codes = tl.where(codes == best[:, :, None], -0x80000000, codes)


@triton.jit
def _distances(
    points, centers, ids, out, candidates, width, CANDIDATES: tl.constexpr, LANES: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1) * CANDIDATES + tl.arange(0, CANDIDATES)
    inside = own < candidates
    lane = tl.arange(0, LANES)
    center = tl.load(ids + row * candidates + own, inside, 0).to(tl.int64)
    sums = tl.full([CANDIDATES, LANES], 0.0, tl.float32)
    for start in range(0, width, LANES):
        column = start + lane
        x = tl.load(points + row * width + column, column < width, 0.0).to(tl.float32)
        at = centers + center[:, None] * width + column[None, :]
        c = tl.load(at, inside[:, None] & (column < width)[None, :], 0.0)
        difference = x[None, :] - c
        sums += difference * difference
    sums = tl.sum(tl.reshape(sums, [CANDIDATES, 2, 32]), 1)
    sums = tl.sum(tl.reshape(sums, [CANDIDATES, 2, 16]), 1)
    sums = tl.sum(tl.reshape(sums, [CANDIDATES, 2, 8]), 1)
    sums = tl.sum(tl.reshape(sums, [CANDIDATES, 2, 4]), 1)
    sums = tl.sum(tl.reshape(sums, [CANDIDATES, 2, 2]), 1)
    tl.store(out + row * candidates + own, tl.sum(sums, 1), inside)
