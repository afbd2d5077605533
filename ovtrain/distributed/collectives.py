"""Collectives with an explicit group and an explicit gradient contract.

``group`` None is a world of one: every function is then the identity. W ranks. The time of the
calls is counted by ``ovtrain.distributed.comm_time``.
"""

# torch.distributed is only partly typed, and `all_gather_single`, which replaces
# `all_gather_into_tensor`, is newer than the oldest torch that ovtrain runs on.
# pyright: reportUnknownMemberType=false, reportDeprecated=false

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from ovtrain.distributed.comm_time import CLOCK


def all_gather_slots(x: Tensor, slots: int, group: dist.ProcessGroup | None) -> Tensor:
    """(n, ...) with n <= slots -> (W * slots, ...), each rank's part zero-padded to ``slots``.

    Not differentiable: its backward is ``reduce_scatter_slots``.
    """
    return all_gather_padded(x, slots, group, fill=0)


def reduce_scatter_slots(x: Tensor, slots: int, group: dist.ProcessGroup | None) -> Tensor:
    """(W * slots, ...) on each rank -> (slots, ...), rank r's part *summed* over ranks.

    Gradient contract: the backward of ``all_gather_slots``; nobody divides.
    """
    if group is None:
        return x
    out = x.new_empty(slots, *x.shape[1:])
    with CLOCK.measured(x.device):
        dist.reduce_scatter_tensor(out, x, group=group)
    return out


def all_gather_padded(x: Tensor, rows: int, group: dist.ProcessGroup | None, fill: int) -> Tensor:
    """(n, ...) with n <= rows -> (W * rows, ...), each rank's part padded with ``fill``. Not
    differentiable. Tensors on the CPU travel over gloo beside a GPU's NCCL."""
    if group is None:
        return x
    padded = x.new_full((rows, *x.shape[1:]), fill)
    padded[: len(x)] = x
    out = x.new_empty(dist.get_world_size(group) * rows, *x.shape[1:])
    with CLOCK.measured(x.device):
        dist.all_gather_into_tensor(out, padded, group=group)
    return out


def all_reduce(x: Tensor, group: dist.ProcessGroup | None, op: str = "sum") -> Tensor:
    """A new tensor, reduced by sum or max. Not differentiable."""
    x = x.detach().clone()
    if group is not None:
        kind = dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM
        with CLOCK.measured(x.device):
            dist.all_reduce(x, op=kind, group=group)
    return x


def reduce_in_place(x: Tensor, group: dist.ProcessGroup | None, op: str = "sum") -> Tensor:
    """``x`` itself, reduced by sum, min or max. Not differentiable."""
    if group is not None:
        kinds = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
        with CLOCK.measured(x.device):
            dist.all_reduce(x, op=kinds[op], group=group)
    return x


class Later:
    """A collective under way; ``wait`` gives its result. Its start and its wait are measured."""

    def __init__(self, result: Tensor, work: dist.Work | None) -> None:
        self._result, self._work = result, work

    def wait(self) -> Tensor:
        if self._work is not None:
            with CLOCK.measured(self._result.device):
                self._work.wait()
        return self._result


def reduce_later(x: Tensor, group: dist.ProcessGroup, op: str = "sum") -> Later:
    """Begin to reduce ``x`` itself, between hosts if it lies on one."""
    kind = dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM
    untyped: Any = dist
    with CLOCK.measured(x.device):
        work = untyped.all_reduce(x, op=kind, group=group, async_op=True)
    return Later(x, work)


def gather_later(x: Tensor, slots: int, group: dist.ProcessGroup | None) -> Later:
    """Begin what ``all_gather_slots`` does."""
    if group is None:
        return Later(x, None)
    padded = x.new_zeros(slots, *x.shape[1:])
    padded[: len(x)] = x
    out = x.new_empty(dist.get_world_size(group) * slots, *x.shape[1:])
    untyped: Any = dist
    with CLOCK.measured(x.device):
        work = untyped.all_gather_into_tensor(out, padded, group=group, async_op=True)
    return Later(out, work)


def broadcast_object(value: object, group: dist.ProcessGroup | None) -> Any:
    """Rank 0's ``value`` on every rank (small, picklable)."""
    if group is None:
        return value
    box = [value]
    with CLOCK.measured(None):
        dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def gather_objects(value: object, group: dist.ProcessGroup | None) -> list[Any]:
    """Every rank's ``value``, in rank order, on every rank."""
    if group is None:
        return [value]
    out: list[Any] = [None] * dist.get_world_size(group)
    with CLOCK.measured(None):
        dist.all_gather_object(out, value, group=group)
    return out


def barrier(group: dist.ProcessGroup | None) -> None:
    if group is not None:
        with CLOCK.measured(None):
            dist.barrier(group=group)
