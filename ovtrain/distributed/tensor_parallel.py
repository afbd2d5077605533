"""Where tensor ranks come together: Megatron's mappings, each with its gradient contract.

Divided products (column, then row: ovtrain.schema.cut) lie between ``enter`` and ``leave``. Outside
of them a rank holds all rows of x, or, with ``sequence``, its part of them: rows are padded with
zeros to a multiple of T and dealt out evenly, rank after rank. A padded row gets no gradient, as
nothing downstream reads it.

T tensor ranks, N rows (tokens or samples), n = N padded / T, D width. Source: Megatron-LM (arXiv
1909.08053, section 3) and its sequence parallelism (2205.05198, section 4.2).

=================  ==================================  =====================================
function           forward                             backward
=================  ==================================  =====================================
``enter``          copy | all-gather (n -> Tn rows)    all-reduce | reduce-scatter
``leave``          all-reduce | reduce-scatter         copy | all-gather
``split``          own rows (N -> n)                   all-gather
``whole``          all-gather (n -> N rows)            own rows
``sum_gradients``  copy                                all-reduce
=================  ==================================  =====================================

``split`` and ``whole`` stand where all ranks hold the same: gradients are equal, too, and nothing
is summed. Where two are named, the second is with ``sequence``.
"""

# torch.distributed and autograd functions are only partly typed.
# pyright: reportUnknownMemberType=false, reportDeprecated=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad

from ovtrain.distributed.comm_time import CLOCK
from ovtrain.distributed.context import World


@dataclass(frozen=True)
class TensorRanks:
    """This rank's tensor group, of two or more ranks; ``sequence``: rows are divided between the
    divided products."""

    world: World
    sequence: bool

    @property
    def size(self) -> int:
        return self.world.size

    def enter(self, x: Tensor) -> Tensor:
        """(N, D) | (n, D) -> (N, D) | (T n, D), the input of a product that is divided by
        columns, in that product's type."""
        return _applied(_Gather if self.sequence else _Copy, _as_multiplied(x), self)

    def leave(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(N, D) terms of the sum over ranks -> (N, D) | (n, D) sums, plus ``bias`` (D,), whose
        gradient is complete on each rank."""
        if self.sequence:
            return _applied(_Scatter, x, bias, self)
        found: Tensor = _applied(_Reduce, x, self)
        return found if bias is None else found + bias.to(found.dtype)

    def copy(self, x: Tensor) -> Tensor:
        """What all ranks hold whole, into a divided product."""
        return _applied(_Copy, _as_multiplied(x), self)

    def split(self, x: Tensor) -> Tensor:
        """(N, D), equal on all ranks -> (n, D) own rows; itself without ``sequence``."""
        return _applied(_Split, x, self) if self.sequence else x

    def whole(self, x: Tensor, rows: int) -> Tensor:
        """(n, D) -> (N = ``rows``, D), equal on all ranks; itself without ``sequence``."""
        return _applied(_Whole, x, rows, self) if self.sequence else x

    def sum_gradients(self, *parameters: Tensor) -> tuple[Tensor, ...]:
        """Parameters that all ranks hold whole and apply to their own rows: one all-reduce."""
        return _applied(_SumGradients, self, *parameters)

    def padded(self, x: Tensor) -> Tensor:
        """With rows of zeros up to a multiple of T."""
        missing = -len(x) % self.size
        return pad(x, (0, 0, 0, missing)) if missing else x.contiguous()

    def own(self, x: Tensor) -> Tensor:
        """(N, D) -> (n, D)."""
        whole = self.padded(x)
        count = len(whole) // self.size
        return whole[self.world.rank * count : (self.world.rank + 1) * count]

    def gathered(self, x: Tensor) -> Tensor:
        """(n, D) -> (T n, D)."""
        out = x.new_empty(self.size * len(x), *x.shape[1:])
        with CLOCK.measured(x.device):
            dist.all_gather_into_tensor(out, x.contiguous(), group=self.world.group)
        return out

    def scattered(self, x: Tensor) -> Tensor:
        """(N, D) terms -> (n, D) own rows of the sum."""
        whole = self.padded(x)
        out = x.new_empty(len(whole) // self.size, *x.shape[1:])
        with CLOCK.measured(x.device):
            dist.reduce_scatter_tensor(out, whole, group=self.world.group)
        return out

    def reduced(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        out = x.clone(memory_format=torch.contiguous_format)
        with CLOCK.measured(x.device):
            dist.all_reduce(out, group=self.world.group)
        return out


def _as_multiplied(x: Tensor) -> Tensor:
    """What travels is half as long under autocast."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _apply(function: Any, *given: Any) -> Any:
    return function.apply(*given)


_applied: Any = torch.compiler.disable(_apply)
"""A compiled block ends and begins here: what is traced would break at every clock and call of a
collective."""


class _Copy(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRanks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return ctx.ranks.reduced(gradient), None


class _Reduce(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRanks) -> Tensor:
        return ranks.reduced(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient, None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRanks) -> Tensor:
        ctx.ranks = ranks
        return ranks.gathered(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return ctx.ranks.scattered(gradient), None


class _Scatter(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, ranks: TensorRanks) -> Tensor:
        ctx.ranks, ctx.rows = ranks, len(x)
        ctx.bias = None if bias is None else bias.dtype
        found = ranks.scattered(x)
        return found if bias is None else found + bias.to(found.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        # All rows are there, so the bias's gradient needs no sum over ranks.
        whole = ctx.ranks.gathered(gradient)[: ctx.rows]
        bias = None if ctx.bias is None else whole.sum(0, dtype=torch.float32).to(ctx.bias)
        return whole, bias, None


class _Split(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: TensorRanks) -> Tensor:
        ctx.ranks, ctx.rows = ranks, len(x)
        return ranks.own(x).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return ctx.ranks.gathered(gradient)[: ctx.rows], None


class _Whole(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int, ranks: TensorRanks) -> Tensor:
        ctx.ranks = ranks
        return ranks.gathered(x)[:rows]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return ctx.ranks.own(gradient), None, None


class _SumGradients(Function):
    @staticmethod
    def forward(ctx: Any, ranks: TensorRanks, *parameters: Tensor) -> Any:
        ctx.ranks = ranks
        return tuple(p.view_as(p) for p in parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        summed = ctx.ranks.reduced(torch.cat([g.flatten() for g in gradients]))
        parts = summed.split([g.numel() for g in gradients])
        return (None, *(p.view_as(g) for p, g in zip(parts, gradients, strict=True)))
