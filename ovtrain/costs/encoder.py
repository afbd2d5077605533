"""Encoder costs from its sizes alone: parameters, FLOPs, bytes of training state.

d width, L depth, m MLP width, p patch side, n tokens of one sample. The FLOP formulas count
multiply-adds as two (paper model, section 8): forward = L (8 d^2 + 4 d m) n + 4 L n^2 d
+ 2 (3 p^2) d n (patch embedding) + 4 d^2 n (keys and values of the pooling); training = 3 x
forward, less the patch embedding's input gradient, which is never computed. Where groups or
temporal windows cut a sample, ``pairs`` stands for n^2: pairs of tokens that attend to one another,
as a mean over blocks.
"""

from __future__ import annotations

from typing import Protocol


class EncoderSize(Protocol):
    """The sizes a formula needs; ``ovtrain.config.model.ModelSize`` is one."""

    @property
    def width(self) -> int: ...

    @property
    def depth(self) -> int: ...

    @property
    def mlp(self) -> int: ...


def pooling_parameters(size: EncoderSize) -> int:
    """Probe, attention (in and out projections with bias), RMSNorm, MLP."""
    d, m = size.width, size.mlp
    return d + 4 * (d * d + d) + d + (2 * d * m + m + d)


def parameters(size: EncoderSize, patch: int = 14) -> int:
    """All parameters of the encoder, pooling head included."""
    d, m = size.width, size.mlp
    block = 4 * (d * d + d) + (2 * d * m + m + d) + 4 * d
    norms = 4 * d  # layernorm_pre and layernorm_post
    return 3 * patch * patch * d + norms + size.depth * block + pooling_parameters(size)


def forward_flops(
    size: EncoderSize, tokens: int, patch: int = 14, pairs: float | None = None
) -> float:
    """FLOPs of one sample's forward pass."""
    d, n = size.width, tokens
    block = (8 * d * d + 4 * d * size.mlp) * n + 4 * (n * n if pairs is None else pairs) * d
    return float(size.depth * block + _patch_flops(size, tokens, patch) + 4 * d * d * n)


def training_flops(
    size: EncoderSize, tokens: int, patch: int = 14, pairs: float | None = None
) -> float:
    """FLOPs of one sample's forward and backward pass, nothing recomputed."""
    return 3 * forward_flops(size, tokens, patch, pairs) - _patch_flops(size, tokens, patch)


def attention_share(size: EncoderSize, tokens: int, patch: int = 14) -> float:
    """Share of the forward FLOPs spent on the two n x n products."""
    quadratic = 4 * size.depth * tokens * tokens * size.width
    return quadratic / forward_flops(size, tokens, patch)


def _patch_flops(size: EncoderSize, tokens: int, patch: int) -> int:
    return 2 * 3 * patch * patch * size.width * tokens


def state_bytes(
    parameter_count: int, world_size: int, zero_stage: int = 1, precision: str = "bf16"
) -> int:
    """Bytes per rank of weights, gradients, fp32 master copy and the two AdamW moments.

    ZeRO 1 divides the optimizer's states over ranks, 2 the gradients too, 3 the weights as well:
    but for those in use, which a rank has whole.
    """
    low = 2 if precision == "bf16" else 4
    optimizer = 12 if precision == "bf16" else 8  # fp32 needs no master copy
    shares = (world_size if zero_stage >= stage else 1 for stage in (3, 2, 1))
    weights, gradients, moments = shares
    per_parameter = low / weights + low / gradients + optimizer / moments
    return round(parameter_count * per_parameter)
