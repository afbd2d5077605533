"""Inner loops of the class-sharded head behind one signature: torch, native (CPU), Triton (GPU).

``kernels_for(device)`` chooses once per device and logs it. ``TorchKernels`` is the reference of
the two others and runs anywhere. Kernels compute in float32 whatever the arrays hold (float32 or
bfloat16), write into the arrays they are given and never wait for the device.

S drawn rows of a step, C local rows, D width, B samples, T rows of one tile.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, softplus

try:
    from ovtrain.ops import _native  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    _native = None

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tile:
    """Some samples against some drawn rows: ``cosines`` (B, T), a ``coefficient`` (B,) of each
    sample, an importance ``weight`` (T,) of each row, 0 on padding, and the loss's ``scale``."""

    cosines: Tensor
    coefficient: Tensor
    weight: Tensor
    scale: float


@dataclass(frozen=True)
class RowState:
    """Rows (C, D) and their optimizer state: ``first`` (C, D) or None, where the gradient stands
    for it; ``second`` (C, D), or (C,) for the mean of squares over a row."""

    rows: Tensor
    first: Tensor | None
    second: Tensor


@dataclass(frozen=True)
class RowRule:
    """The optimizer's arithmetic: first <- lerp(first, g, 1 - beta1); second <- keep2 * second +
    take2 * g^2; row <- decay * row - lr * c1 * first / (sqrt(c2 * second) + eps)."""

    beta1: float
    keep2: float
    take2: float
    eps: float


@dataclass(frozen=True)
class RowStep:
    """One step of rows ``index`` (S,) with ``gradient`` (>= S, D) times ``clip`` (): rate ``lr``,
    ``decay``, ``c1`` and ``c2`` (S,) of RowRule; ``first_row``, the global number of local row 0,
    and ``key``, 32 bits, steer stochastic rounding."""

    index: Tensor
    gradient: Tensor
    clip: Tensor
    lr: float
    decay: Tensor
    c1: Tensor
    c2: Tensor
    first_row: int
    key: int


class Kernels(Protocol):
    def unit_rows(self, rows: Tensor, index: Tensor, out: Tensor, inverse: Tensor) -> None:
        """``out`` (>= S, D) <- rows[index] / |.|, 0 beyond S; ``inverse`` (S,) <- 1 / |.|. Norms
        below 1e-12 count as that; a row whose norm is no finite number gives zeros and NaN."""
        ...

    def pull(
        self, rows: Tensor, index: Tensor, weight: Tensor, offsets: Tensor, out: Tensor
    ) -> None:
        """``out`` (B, D) float32 += the sum of weight_p * rows[index_p] over pairs offsets_b <= p <
        offsets_b+1; index and weight (P,), offsets (B + 1,) int64."""
        ...

    def tangent(self, gradient: Tensor, unit: Tensor, inverse: Tensor, squares: Tensor) -> None:
        """``gradient`` (S, D) of the unit rows <- that of the rows, in place: (g - (g.u) u) *
        inverse; ``squares`` (S,) <- its squared norms. ``unit`` (>= S, D), ``inverse`` (S,)."""
        ...

    def logistic(self, tile: Tile, bias: float, loss: Tensor) -> None:
        """Negative terms coefficient_b * weight_t * log(1 + exp(z)), z = scale * cosine + bias:
        their sums are added to ``loss`` (B,), the cosines become their gradient."""
        ...

    def statistics(self, tile: Tile, ceiling: float, peak: Tensor, total: Tensor) -> None:
        """Running ``peak`` (B,), the largest z = scale * cosine so far, and ``total`` (B,), the sum
        of weight_t * exp(z - peak). Cosines above ``ceiling`` count as 0, rows of weight 0 not
        at all."""
        ...

    def exponential(self, tile: Tile, ceiling: float, peak: Tensor, out: Tensor) -> None:
        """``out`` (B, T), which may be the cosines <- coefficient_b * scale * weight_t *
        exp(z - peak_b); 0 for cosines above ``ceiling``, whose z is constant. Peaks are finite, z
        at most its sample's peak."""
        ...

    def update(self, state: RowState, rule: RowRule, step: RowStep) -> None:
        """One optimizer step of some rows, none where the clip factor is NaN. bfloat16 rows and
        moments are rounded stochastically by bits that are a function of (key, global row,
        column)."""
        ...


class TorchKernels:
    """The reference, on any device."""

    def unit_rows(self, rows: Tensor, index: Tensor, out: Tensor, inverse: Tensor) -> None:
        taken = rows[index].float()
        norm = taken.square().sum(1).sqrt()
        finite = norm.isfinite()
        inverse.copy_(norm.clamp(min=1e-12).reciprocal().masked_fill(~finite, torch.nan))
        out[: len(index)] = torch.where(finite[:, None], taken * inverse[:, None], 0.0)
        out[len(index) :].zero_()

    def pull(
        self, rows: Tensor, index: Tensor, weight: Tensor, offsets: Tensor, out: Tensor
    ) -> None:
        pairs = torch.arange(len(index), device=rows.device)
        taken = rows[index].float()
        out += embedding_bag(
            pairs,
            taken,
            offsets,
            mode="sum",
            per_sample_weights=weight,
            include_last_offset=True,
        )

    def tangent(self, gradient: Tensor, unit: Tensor, inverse: Tensor, squares: Tensor) -> None:
        g, u = gradient.float(), unit[: len(gradient)].float()
        along = (g * u).sum(1, keepdim=True)
        g = (g - along * u) * inverse[:, None]
        squares.copy_(g.square().sum(1))
        gradient.copy_(g)

    def logistic(self, tile: Tile, bias: float, loss: Tensor) -> None:
        z = tile.cosines.float() * tile.scale + bias
        loss += tile.coefficient * (softplus(z) * tile.weight).sum(1)
        slope = (tile.coefficient * tile.scale)[:, None]
        tile.cosines.copy_(torch.sigmoid(z) * tile.weight * slope)

    def statistics(self, tile: Tile, ceiling: float, peak: Tensor, total: Tensor) -> None:
        cosines = tile.cosines.float()
        z = cosines.masked_fill(cosines > ceiling, 0.0) * tile.scale
        z = z.masked_fill(tile.weight == 0, -torch.inf)
        most = torch.maximum(peak, z.amax(1))
        shift = most.clamp(min=-1e30)  # -inf - -inf is no number
        total *= torch.exp(peak - shift)
        total += (torch.exp(z - shift[:, None]) * tile.weight).sum(1)
        peak.copy_(most)

    def exponential(self, tile: Tile, ceiling: float, peak: Tensor, out: Tensor) -> None:
        cosines = tile.cosines.float()
        z = (cosines * tile.scale - peak[:, None]).masked_fill(tile.weight == 0, -torch.inf)
        gradient = torch.exp(z) * tile.weight
        gradient *= (tile.coefficient * tile.scale)[:, None]
        out.copy_(gradient.masked_fill_(cosines > ceiling, 0.0))

    def update(self, state: RowState, rule: RowRule, step: RowStep) -> None:
        noise, index = _Noise(state.rows, step), step.index
        refused = step.clip.isnan()
        g = step.gradient[: len(index)].float() * step.clip
        direction = g
        if state.first is not None:
            held = state.first[index]
            direction = held.float().lerp(g, 1 - rule.beta1)
            rounded = noise.rounded(direction, state.first.dtype, 16)
            state.first[index] = torch.where(refused, held, rounded)
        squares = g.square() if state.second.ndim == 2 else g.square().mean(1)
        held = state.second[index]
        squares = held * rule.keep2 + rule.take2 * squares
        state.second[index] = torch.where(refused, held, squares)
        scale = (squares.view(len(g), -1) * step.c2[:, None]).sqrt() + rule.eps
        held = state.rows[index]
        taken = held.float() * step.decay[:, None]
        taken -= step.lr * step.c1[:, None] * direction / scale
        state.rows[index] = torch.where(refused, held, noise.rounded(taken, state.rows.dtype, 0))


class _Noise:
    """32 random bits per element, a function of (key, global row, column) alone."""

    def __init__(self, rows: Tensor, step: RowStep) -> None:
        self.rows, self.step = rows, step

    def rounded(self, x: Tensor, dtype: torch.dtype, shift: int) -> Tensor:
        """``x`` (S, D) float32; to bfloat16 stochastically, by 16 of the bits from ``shift`` on."""
        if dtype == torch.float32:
            return x
        bits = x.view(torch.int32).long() & MASK
        finite = (bits & 0x7F800000) != 0x7F800000
        raised = bits + torch.where(finite, (self._bits() >> shift) & 0xFFFF, 0)
        top = raised & 0xFFFF0000
        return (top - (top >= 2**31).long() * 2**32).int().view(torch.float32).to(dtype)

    def _bits(self) -> Tensor:
        number = self.step.index + self.step.first_row
        seed = mix32((number & MASK) ^ mix32(self.step.key ^ (number >> 32)))
        columns = torch.arange(self.rows.shape[1], device=self.rows.device)
        return mix32((seed[:, None] + columns * 0x9E3779B9) & MASK)


MASK = 0xFFFFFFFF


def mix32(x: Tensor) -> Tensor:
    """A permutation of 32-bit numbers (held in int64) that scatters them."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)


class NativeKernels:
    """The C++ loops of ``ops/native``, on as many threads as torch uses."""

    def __init__(self) -> None:
        assert _native is not None
        self.native = _native

    def unit_rows(self, rows: Tensor, index: Tensor, out: Tensor, inverse: Tensor) -> None:
        self.native.unit_rows(rows, index, out, inverse, torch.get_num_threads())

    def pull(
        self, rows: Tensor, index: Tensor, weight: Tensor, offsets: Tensor, out: Tensor
    ) -> None:
        self.native.pull(rows, index, weight, offsets, out, torch.get_num_threads())

    def tangent(self, gradient: Tensor, unit: Tensor, inverse: Tensor, squares: Tensor) -> None:
        self.native.tangent(gradient, unit, inverse, squares, torch.get_num_threads())

    def logistic(self, tile: Tile, bias: float, loss: Tensor) -> None:
        self.native.logistic(
            tile.cosines,
            tile.coefficient,
            tile.weight,
            tile.scale,
            bias,
            loss,
            torch.get_num_threads(),
        )

    def statistics(self, tile: Tile, ceiling: float, peak: Tensor, total: Tensor) -> None:
        self.native.statistics(
            tile.cosines, tile.weight, tile.scale, ceiling, peak, total, torch.get_num_threads()
        )

    def exponential(self, tile: Tile, ceiling: float, peak: Tensor, out: Tensor) -> None:
        self.native.exponential(
            tile.cosines,
            tile.coefficient,
            peak,
            tile.weight,
            tile.scale,
            ceiling,
            out,
            torch.get_num_threads(),
        )

    def update(self, state: RowState, rule: RowRule, step: RowStep) -> None:
        self.native.update(
            state.rows,
            state.first,
            state.second,
            step.index,
            step.gradient,
            step.decay,
            step.c1,
            step.c2,
            step.clip.reshape(1),
            step.lr,
            rule.beta1,
            rule.keep2,
            rule.take2,
            rule.eps,
            step.first_row,
            step.key,
            torch.get_num_threads(),
        )


def native() -> Any:
    """The extension module, None where it is not built."""
    return _native


@cache
def kernels_for(device_type: str) -> Kernels:
    """The fastest implementation here for "cpu", "cuda", ..."""
    chosen: Kernels = TorchKernels()
    if device_type == "cpu" and _native is not None:
        chosen = NativeKernels()
    if device_type == "cuda":
        try:
            from ovtrain.ops.class_triton import TritonKernels
        except ImportError:
            log.warning("triton is absent; the head runs in plain torch, several times slower")
        else:
            chosen = TritonKernels()
    log.info("head kernels on %s: %s", device_type, type(chosen).__name__)
    return chosen
