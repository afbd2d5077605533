"""The encoder's parameters by name and size, in the order in which the model holds them.

d width, m MLP width, p patch side, L depth. Sizes that divide without rest hide every padding; with
the whole table, what ZeRO pads and keeps whole can be computed to the byte (``costs.zero``).

Each parameter says how tensor ranks divide it (Megatron-LM, section 3): of attention and MLP the
first map by its outputs and the second by its inputs; biases of second maps, norms, patch embedding
and probe are whole on all of them. ``head.attention.in_proj`` stacks queries, keys and values; the
blocks' ``qkv`` holds the three of a head side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ovtrain.costs.encoder import EncoderSize
from ovtrain.schema.cut import COLUMN, REPLICATED, ROW, Cut

STACKED = Cut("column", 3)


@dataclass(frozen=True)
class Parameter:
    """``decayed``: in the optimizer's group of matrices, not in that of biases, norms and probe."""

    name: str
    numel: int
    decayed: bool
    cut: Cut = REPLICATED


def table(
    size: EncoderSize, patch: int = 14, *, norm: str = "layer_norm", pooling: bool = True
) -> tuple[Parameter, ...]:
    """All parameters; ``norm`` and ``pooling`` as in the model's config."""
    d, m = size.width, size.mlp
    found = [Parameter("embeddings.patch_embedding.weight", 3 * patch * patch * d, True)]
    found += _norm("layernorm_pre", d, norm)
    for i in range(size.depth):
        found += _block(f"layers.{i}", d, m, norm)
    if pooling:
        found += _norm("layernorm_post", d, norm)
        found += _pooling(d, m)
    return tuple(found)


def count(parameters: Sequence[Parameter]) -> int:
    return sum(p.numel for p in parameters)


def part_of(parameters: Sequence[Parameter], tensor_ranks: int) -> tuple[Parameter, ...]:
    """The same parameters with the numbers that one tensor rank holds of each. ``tensor_ranks``
    divides attention's heads and the MLP (``ovtrain.config.layout``)."""
    return tuple(replace(p, numel=p.cut.numel(p.numel, tensor_ranks)) for p in parameters)


def groups(parameters: Sequence[Parameter]) -> tuple[list[Parameter], list[Parameter]]:
    """The optimizer's two groups: decayed, not decayed."""
    return [p for p in parameters if p.decayed], [p for p in parameters if not p.decayed]


def _block(name: str, d: int, m: int, norm: str) -> Iterator[Parameter]:
    yield from _norm(f"{name}.layer_norm1", d, norm)
    yield from _column(f"{name}.self_attn.qkv", d, 3 * d)
    yield from _row(f"{name}.self_attn.out_proj", d, d)
    yield from _norm(f"{name}.layer_norm2", d, norm)
    yield from _mlp(f"{name}.mlp", d, m)


def _pooling(d: int, m: int) -> Iterator[Parameter]:
    """An RMSNorm whatever the blocks have; the probe is not decayed."""
    yield Parameter("head.probe", d, False)
    yield Parameter("head.attention.in_proj_weight", 3 * d * d, True, STACKED)
    yield Parameter("head.attention.in_proj_bias", 3 * d, False, STACKED)
    yield from _row("head.attention.out_proj", d, d)
    yield from _norm("head.norm", d, "rms_norm")
    yield from _mlp("head.mlp", d, m)


def _mlp(name: str, d: int, m: int) -> Iterator[Parameter]:
    yield from _column(f"{name}.fc1", d, m)
    yield from _row(f"{name}.fc2", m, d)


def _column(name: str, inputs: int, outputs: int) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", inputs * outputs, True, COLUMN)
    yield Parameter(f"{name}.bias", outputs, False, COLUMN)


def _row(name: str, inputs: int, outputs: int) -> Iterator[Parameter]:
    """The bias is added to the sum over all parts: each rank has it whole."""
    yield Parameter(f"{name}.weight", inputs * outputs, True, ROW)
    yield Parameter(f"{name}.bias", outputs, False)


def _norm(name: str, d: int, kind: str) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", d, False)
    if kind == "layer_norm":
        yield Parameter(f"{name}.bias", d, False)
