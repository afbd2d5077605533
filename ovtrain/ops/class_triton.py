# ruff: noqa: ANN001, ANN202 (in a kernel's signature annotations are instructions to Triton)
# pyright: reportArgumentType=false, reportCallIssue=false, reportInvalidTypeForm=false
"""Inner loops of the class-sharded head on a GPU: ``class_kernels.Kernels`` in Triton.

One program holds one row of a (rows, D) array at once, or walks along one sample's row of a (B, T)
tile a BLOCK at a time, so that every sum is made by one program in a fixed order: equal inputs give
equal results. Arrays are contiguous; all kernels compute in float32, load what varies per step from
the device and never wait for it. With TRITON_INTERPRET=1 set before the first import of triton they
run on CPU tensors: that, and compilation for sm_90, is what has been tested; no GPU has run them.

S drawn rows of a step, C local rows, D width, B samples, T rows of one tile.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ovtrain.ops.class_kernels import RowRule, RowState, RowStep, Tile

TILE = {"BLOCK": 2048, "num_warps": 8, "enable_fp_fusion": True}


class TritonKernels:
    """Launches: shapes and flags become kernel arguments here."""

    def unit_rows(self, rows: Tensor, index: Tensor, out: Tensor, inverse: Tensor) -> None:
        _assert_contiguous(rows, index, out, inverse)
        count, width = len(index), rows.shape[1]
        out[count:].zero_()
        if count:
            _unit_row[(count,)](rows, index, out, inverse, width, **_one_block(width))

    def pull(
        self, rows: Tensor, index: Tensor, weight: Tensor, offsets: Tensor, out: Tensor
    ) -> None:
        _assert_contiguous(rows, index, weight, offsets, out)
        samples, width = out.shape
        _pull[(samples,)](rows, index, weight, offsets, out, width, **_one_block(width))

    def tangent(self, gradient: Tensor, unit: Tensor, inverse: Tensor, squares: Tensor) -> None:
        _assert_contiguous(gradient, unit, inverse, squares)
        count, width = gradient.shape
        if not count:
            return
        _tangent[(count,)](gradient, unit, inverse, squares, width, **_one_block(width))

    def logistic(self, tile: Tile, bias: float, loss: Tensor) -> None:
        _assert_contiguous(tile.cosines, tile.coefficient, tile.weight, loss)
        samples, columns = tile.cosines.shape
        _logistic[(samples,)](
            tile.cosines, tile.coefficient, tile.weight, loss, tile.scale, bias, columns, **TILE
        )

    def statistics(self, tile: Tile, ceiling: float, peak: Tensor, total: Tensor) -> None:
        _assert_contiguous(tile.cosines, tile.weight, peak, total)
        samples, columns = tile.cosines.shape
        _statistics[(samples,)](
            tile.cosines, tile.weight, peak, total, tile.scale, ceiling, columns, **TILE
        )

    def exponential(self, tile: Tile, ceiling: float, peak: Tensor, out: Tensor) -> None:
        _assert_contiguous(tile.cosines, tile.coefficient, tile.weight, peak, out)
        samples, columns = tile.cosines.shape
        _exponential[(samples, triton.cdiv(columns, TILE["BLOCK"]))](
            tile.cosines,
            tile.coefficient,
            tile.weight,
            peak,
            out,
            tile.scale,
            ceiling,
            columns,
            **TILE,
        )

    def update(self, state: RowState, rule: RowRule, step: RowStep) -> None:
        _assert_contiguous(state.rows, state.first, state.second, step.index, step.gradient)
        _assert_contiguous(step.decay, step.c1, step.c2)
        width = state.rows.shape[1]
        if not len(step.index):
            return
        _update[(len(step.index),)](
            state.rows,
            state.first,
            state.second,
            step.index,
            step.gradient,
            step.clip,
            step.decay,
            step.c1,
            step.c2,
            step.lr,
            1 - rule.beta1,
            rule.keep2,
            rule.take2,
            rule.eps,
            step.first_row,
            step.key,
            width,
            PER_ROW=state.second.ndim == 1,
            **_one_block(width),
        )


def _assert_contiguous(*arrays: Tensor | None) -> None:
    assert all(array is None or array.is_contiguous() for array in arrays)


def _one_block(width: int) -> dict[str, int]:
    """A block that holds a row, on a warp per 256 columns. Its arithmetic is the reference's, one
    operation after the other: memory is what these kernels wait for."""
    block = triton.next_power_of_2(width)
    warps = min(max(block // 256, 1), 8)
    return {"BLOCK": block, "num_warps": warps, "enable_fp_fusion": False}


@triton.jit
def _load(at, inside, other):
    return tl.load(at, mask=inside, other=other).to(tl.float32)


@triton.jit
def _unit_row(rows, index, out, inverse, width, BLOCK: tl.constexpr):
    own = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = _load(rows + tl.load(index + own) * width + column, inside, 0.0)
    squares = tl.sum(x * x, 0)
    finite = squares < float("inf")  # pyright: ignore[reportOperatorIssue]  # neither it nor NaN
    scale = 1.0 / tl.maximum(tl.sqrt(tl.where(finite, squares, 1.0)), 1e-12)
    tl.store(out + own * width + column, tl.where(finite, x, 0.0) * scale, inside)
    tl.store(inverse + own, tl.where(finite, scale, float("nan")))


@triton.jit
def _pull(rows, index, weight, offsets, out, width, BLOCK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = out + sample * width + column
    sums = _load(at, inside, 0.0)
    for pair in range(tl.load(offsets + sample), tl.load(offsets + sample + 1)):
        x = _load(rows + tl.load(index + pair) * width + column, inside, 0.0)
        sums += tl.load(weight + pair) * x
    tl.store(at, sums, inside)


@triton.jit
def _tangent(gradient, unit, inverse, squares, width, BLOCK: tl.constexpr):
    own = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = own * width + column
    g = _load(gradient + at, inside, 0.0)
    u = _load(unit + at, inside, 0.0)
    g = (g - tl.sum(g * u, 0) * u) * tl.load(inverse + own)
    tl.store(squares + own, tl.sum(g * g, 0))
    tl.store(gradient + at, g, inside)


@triton.jit
def _log1p_unit(t):
    """log(1 + t) for t in [0, 1], by 2 atanh(t / (2 + t)); relative error below 2e-7."""
    s = t / (2.0 + t)
    q = s * s
    p = q * (1.0 / 13) + 1.0 / 11
    p = p * q + 1.0 / 9
    p = p * q + 1.0 / 7
    p = p * q + 1.0 / 5
    p = p * q + 1.0 / 3
    return 2.0 * s * (p * q + 1.0)


@triton.jit
def _logistic(cosines, coefficient, weight, loss, scale, bias, columns, BLOCK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    own = tl.load(coefficient + sample)
    slope = own * scale
    sums = tl.full([BLOCK], 0.0, tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        at = cosines + sample * columns + column
        z = _load(at, inside, 0.0) * scale + bias
        w = _load(weight + column, inside, 0.0)
        t = tl.exp(-tl.abs(z))
        sums += w * (tl.maximum(z, 0.0) + _log1p_unit(t))
        share = tl.where(z >= 0, 1.0, t) / (1.0 + t)
        tl.store(at, share * w * slope, inside)
    tl.store(loss + sample, tl.load(loss + sample) + own * tl.sum(sums, 0))


@triton.jit
def _statistics(cosines, weight, peak, total, scale, ceiling, columns, BLOCK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    most = tl.load(peak + sample)
    sums = tl.where(tl.arange(0, BLOCK) == 0, tl.load(total + sample), 0.0)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        x = _load(cosines + sample * columns + column, inside, float("-inf"))
        w = _load(weight + column, inside, 0.0)
        z = tl.where(x > ceiling, 0.0, x * scale)
        z = tl.where(w == 0.0, float("-inf"), z)
        before = most
        most = tl.maximum(before, tl.max(z, 0))
        shift = tl.maximum(most, -1e30)  # -inf - -inf is no number
        sums = sums * tl.exp(before - shift) + w * tl.exp(z - shift)
    tl.store(peak + sample, most)
    tl.store(total + sample, tl.sum(sums, 0))


@triton.jit
def _exponential(
    cosines, coefficient, weight, peak, out, scale, ceiling, columns, BLOCK: tl.constexpr
):
    sample = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    at = sample * columns + column
    x = _load(cosines + at, inside, float("-inf"))
    w = _load(weight + column, inside, 0.0)
    shift = tl.maximum(tl.load(peak + sample), -1e30)
    e = tl.exp(tl.where((x > ceiling) | (w == 0.0), float("-inf"), x * scale - shift))
    tl.store(out + at, e * w * (tl.load(coefficient + sample) * scale), inside)


@triton.jit
def _mixed(x):
    """``class_kernels.mix32`` of uint32, whose products wrap around."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _noise(key, number, column):
    """32 random bits for each column of global row ``number``."""
    low, high = number.to(tl.uint32), (number >> 32).to(tl.uint32)
    seed = _mixed(low ^ _mixed(key.to(tl.uint32) ^ high))
    return _mixed(seed + column.to(tl.uint32) * 0x9E3779B9)


@triton.jit
def _store(at, x, noise, inside):
    """float32 as it is; bfloat16 rounded up with a probability equal to the part that is cut off,
    by the lower 16 bits of ``noise``."""
    if at.dtype.element_ty == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        finite = (bits & 0x7F800000) != 0x7F800000
        bits = tl.where(finite, bits + (noise & 0xFFFF), bits)
        tl.store(at, (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True), inside)
    else:
        tl.store(at, x, inside)


@triton.jit(do_not_specialize=["first_row", "key"])
def _update(
    rows,
    first,
    second,
    index,
    gradient,
    clip,
    decay,
    c1,
    c2,
    lr,
    take1,
    keep2,
    take2,
    eps,
    first_row: tl.int64,
    key: tl.int64,
    width,
    PER_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    own = tl.program_id(0).to(tl.int64)
    row = tl.load(index + own)
    column = tl.arange(0, BLOCK)
    factor = tl.load(clip)
    # No column where the factor is NaN: the step is refused.
    columns = tl.where(tl.abs(factor) >= 0.0, width, 0)
    inside = column < columns
    at = row * width + column
    noise = _noise(key, row + first_row, column)
    g = _load(gradient + own * width + column, inside, 0.0) * factor
    direction = g
    if first is not None:
        direction = _load(first + at, inside, 0.0)
        direction += take1 * (g - direction)
        _store(first + at, direction, noise >> 16, inside)
    if PER_ROW:
        held = tl.load(second + row)
        squares = keep2 * held + take2 * (tl.sum(g * g, 0) / width)
        tl.store(second + row, tl.where(tl.abs(factor) >= 0.0, squares, held))
    else:
        squares = keep2 * _load(second + at, inside, 0.0) + take2 * (g * g)
        tl.store(second + at, squares, inside)
    scale = tl.sqrt_rn(squares * tl.load(c2 + own)) + eps
    x = _load(rows + at, inside, 0.0) * tl.load(decay + own)
    x -= tl.div_rn(lr * tl.load(c1 + own) * direction, scale)
    _store(rows + at, x, noise, inside)
