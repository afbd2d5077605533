"""Give each tensor rank its part of a model, by the model's own plan.

A plan names a cut (ovtrain.schema.cut) for each parameter that is divided. Linear maps are replaced
by those below, norms by ones that see a part of the rows, a module's ``heads`` by this rank's
share. What else has to do with several ranks is a seam: a function attribute that a model calls
where ranks come together, and that does nothing where there is one (``Encoder.set_seams``).

Only parameters that lie whole on every rank, equal, may be handed in.
"""

# torch.nn is only partly typed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, rms_norm

from ovtrain.distributed.tensor_parallel import TensorRanks
from ovtrain.schema.cut import Cut, Part, matrix

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Division:
    """shapes: of all parameters, whole; parts: this rank's, of those that are divided."""

    shapes: Shapes
    parts: Mapping[str, Part]


def undivided(model: nn.Module) -> Division:
    """Of a rank that holds all of it."""
    return Division({name: p.shape for name, p in model.named_parameters()}, {})


class ColumnLinear(nn.Linear):
    """This rank's output features."""

    ranks: TensorRanks

    def forward(self, input: Tensor) -> Tensor:
        """(N, D) | (n, D) -> (N, D_out / T)."""
        return linear(self.ranks.enter(input), self.weight, self.bias)


class RowLinear(nn.Linear):
    """This rank's input features; the bias is added once."""

    ranks: TensorRanks

    def forward(self, input: Tensor) -> Tensor:
        """(N, D / T) -> (N, D_out) | (n, D_out)."""
        return self.ranks.leave(linear(input, self.weight), cast("Tensor | None", self.bias))


class SequenceLayerNorm(nn.LayerNorm):
    ranks: TensorRanks

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.ranks.sum_gradients(self.weight, self.bias)
        return layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class SequenceRMSNorm(nn.RMSNorm):
    ranks: TensorRanks

    def forward(self, x: Tensor) -> Tensor:
        (weight,) = self.ranks.sum_gradients(cast("Tensor", self.weight))
        return rms_norm(x, self.normalized_shape, weight, self.eps)


def divide(model: nn.Module, plan: Mapping[str, Cut], ranks: TensorRanks) -> Division:
    """Leave this rank its part of ``model``, in place."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    parts = {
        name: Part(cut, ranks.world.rank, ranks.size) for name, cut in plan.items() if cut.divided
    }
    for name, part in parts.items():
        assert part.cut.divides(shapes[name], ranks.size), (name, shapes[name], ranks.size)
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        whole = cast("nn.Parameter", getattr(module, last))
        own: Any = nn.Parameter(part_of(whole.detach(), part), whole.requires_grad)
        own.model_parallel = own.tensor_model_parallel = True  # what ZeRO looks for in its norm
        setattr(module, last, own)
    for prefix, module in list(cast("Any", model).named_modules()):
        _adapt(module, prefix, parts, ranks)
    return Division(shapes, parts)


def part_of(whole: Tensor, part: Part) -> Tensor:
    """A copy of a part of a parameter."""
    rows, columns = matrix(whole.shape)
    across = part.columns(columns)
    flat = whole.reshape(rows, columns)[:, across.start : across.stop]
    picked = [flat[r.start : r.stop] for r in part.rows(rows)]
    return torch.cat(picked).reshape(part.shape(whole.shape)).clone()


def _adapt(module: nn.Module, prefix: str, parts: Mapping[str, Part], ranks: TensorRanks) -> None:
    """A module's heads, and the classes of its children: what they hold and what hooks on them
    stays."""
    if isinstance(heads := getattr(module, "heads", None), int):
        module.heads = heads // ranks.size  # type: ignore[assignment]
    for name, child in module.named_children():
        kind = _kind(child, parts.get(f"{prefix}.{name}.weight".lstrip(".")), ranks)
        if kind is not None:
            child.__class__ = kind
            child.ranks = ranks  # type: ignore[assignment]


def _kind(child: nn.Module, part: Part | None, ranks: TensorRanks) -> type[nn.Module] | None:
    if isinstance(child, nn.Linear) and part is not None:
        return ColumnLinear if part.cut.kind == "column" else RowLinear
    if ranks.sequence and type(child) is nn.LayerNorm:
        return SequenceLayerNorm
    return SequenceRMSNorm if ranks.sequence and type(child) is nn.RMSNorm else None
