"""Encoder costs from its sizes alone: parameters, FLOPs, activations (training state: ``zero``).

d width, L depth, m MLP width, p patch side, n tokens of one sample. The FLOP formulas count
multiply-adds as two (paper model, section 8): forward = L (8 d^2 + 4 d m) n + 4 L n^2 d
+ 2 (3 p^2) d n (patch embedding) + 4 d^2 n (keys and values of the pooling); training = 3 x
forward, less the patch embedding's input gradient, which is never computed. Where groups or
temporal windows cut a sample, ``pairs`` stands for n^2: pairs of tokens that attend to one another,
as a mean over blocks.
"""

from __future__ import annotations

from typing import Protocol

NUMBER_BYTES = {"fp32": 4, "bf16": 2}
"""Of an activation, by the run's precision, whatever the weights are held in."""


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


def undivided_flops(size: EncoderSize, tokens: int, patch: int = 14) -> float:
    """Of the training FLOPs those that every tensor rank does for itself: the patch embedding and
    its weights' gradient."""
    return 2.0 * _patch_flops(size, tokens, patch)


def recomputed_blocks(size: EncoderSize, recompute: int) -> int:
    """Blocks that are computed a second time, as ``model.recompute`` counts."""
    return len(range(0, size.depth, recompute)) if recompute else 0


def recomputed_flops(size: EncoderSize, tokens: int, recompute: int) -> float:
    """Of one sample: the forward pass of those blocks, up to the last map's input. Not counted as
    model FLOPs."""
    d, n, m = size.width, tokens, size.mlp
    block = (8 * d * d + 2 * d * m) * n + 4 * n * n * d
    return float(recomputed_blocks(size, recompute) * block)


def activation_bytes(
    size: EncoderSize,
    tokens: int,
    patch: int = 14,
    *,
    recompute: int = 0,
    number_bytes: int = 2,
    tensor_ranks: int = 1,
    sequence: bool = False,
) -> int:
    """Most that a forward pass keeps for its backward pass: what autograd saves, no scores.

    Numbers per token. A block: input and output of both norms (4 d), queries, keys and values
    (3 d), rotated queries and keys (2 d), attention's output (d), the MLP's hidden layer before and
    after GELU (2 m). Around them: the patch (3 p^2), the input of the first norm (d), input and
    output of the last (2 d), keys and values of the pooling (2 d). A recomputed block (every
    ``recompute``-th, as ``model.recompute``) keeps its input, and is there whole while it is
    computed again.

    Tensor ranks divide what lies inside attention (6 d), the MLP (2 m) and the pooling (2 d). Under
    ``sequence`` they divide tokens, filled up to equal parts, where norms take them in, too: 2 d of
    a block, the input of the last norm, a recomputed block's. Outputs of norms stay whole: what was
    gathered for a product is kept for its backward pass, not gathered again.

    Left out: the norms' statistics and the rotation tables. Measured at d = 1,024, bf16, four
    blocks, 1,024 tokens: 156 MiB; here 155.
    """
    d, divided = size.width, sequence and tensor_ranks > 1
    rows = -(-tokens // tensor_ranks) * tensor_ranks if divided else tokens
    inputs = d // tensor_ranks if divided else d
    block = 2 * inputs + 2 * d + (6 * d + 2 * size.mlp) // tensor_ranks
    around = 3 * patch * patch + d + inputs + d + 2 * d // tensor_ranks
    again = recomputed_blocks(size, recompute)
    numbers = (size.depth - again) * block + again * inputs + around
    return number_bytes * rows * (numbers + (block - inputs if again else 0))
