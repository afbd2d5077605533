"""One head per source on one batch: what ranks exchange, and when.

A micro-step costs one all-gather of unit embeddings and one reduce-scatter of their gradients, for
all heads together, over data ranks; tensor ranks, which hold the same embeddings and other rows,
then sum the gradients. Where a head has an exponential loss, two small all-reduces more (maxima
with the positives' cosines, then sums), also for all such heads together. A source that a
micro-step holds no sample of costs nothing.

B samples of this rank, D width, H heads; ``slots``: most samples that a rank holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ovtrain.config.step_plan import split
from ovtrain.distributed.collectives import (
    Later,
    all_reduce,
    gather_later,
    reduce_in_place,
    reduce_scatter_slots,
)
from ovtrain.distributed.context import World
from ovtrain.distributed.mesh import Mesh
from ovtrain.heads.class_sharded import ClassShardedHead, Plan
from ovtrain.heads.streaming import DrawnRows, Statistics, Stream
from ovtrain.ops.buffers import Buffers
from ovtrain.ops.class_kernels import kernels_for


@dataclass(frozen=True)
class HeadStep:
    """One head in one step, with the ``weight`` of its source."""

    head: ClassShardedHead
    weight: float
    plan: Plan
    rows: DrawnRows


@dataclass(frozen=True)
class MicroResult:
    """losses (H,): this rank's terms of each source's loss, unweighted; gradient (B, D): of the
    weighted sum of all ranks' terms, complete for my samples; sound (B,) bool: samples whose
    embedding is finite and not zero, the others took no part."""

    losses: Tensor
    gradient: Tensor
    sound: Tensor


@dataclass(frozen=True)
class Gathering:
    """Unit embeddings on their way: of this rank (B, D) with the inverse norms (B,), of all data
    ranks (their number x slots, D)."""

    unit: Tensor
    inverse: Tensor
    slots: int
    all: Later


class MultiSource:
    """The heads of all sources on this rank, whose rows are divided over all ranks of ``mesh``."""

    def __init__(self, mesh: Mesh) -> None:
        world = mesh.world
        self.mesh, self.world = mesh, world
        self.kernels = kernels_for(world.device.type)
        self.buffers = Buffers(world.device)
        self._numbers = torch.arange(0, device=world.device)

    def micro_step(
        self,
        pooled: Tensor,
        steps: Sequence[HeadStep | None],
        k: int,
        places: Sequence[Tensor],
        slots: int,
    ) -> MicroResult:
        """Losses and gradients of micro-step ``k``; adds to the gradients of each head's rows.

        pooled (B, D) float32 embeddings, cut from the graph; steps: None for a source without a
        labelled sample in this step; places[h] (B_h,): where head h's samples are in what is
        gathered. The result's gradient is overwritten by the next micro-step.
        """
        return self.finish(self.begin(pooled, steps, slots), steps, k, places)

    def begin(self, pooled: Tensor, steps: Sequence[HeadStep | None], slots: int) -> Gathering:
        """The first half of ``micro_step``: what is computed until ``finish`` hides the gather. One
        at a time."""
        unit = self.buffers.empty("unit", tuple(pooled.shape), torch.float32)
        inverse = pooled.new_empty(len(pooled))
        if len(self._numbers) < len(pooled):
            self._numbers = torch.arange(len(pooled), device=pooled.device)
        self.kernels.unit_rows(pooled, self._numbers[: len(pooled)], unit, inverse)
        dtypes = {step.head.dtype for step in steps if step is not None}
        wire = dtypes.pop() if len(dtypes) == 1 else torch.float32
        sent = self.buffers.empty("sent", tuple(unit.shape), wire).copy_(unit)
        return Gathering(unit, inverse, slots, gather_later(sent, slots, self.mesh.data.group))

    def finish(
        self,
        gathering: Gathering,
        steps: Sequence[HeadStep | None],
        k: int,
        places: Sequence[Tensor],
    ) -> MicroResult:
        """The second half."""
        unit, inverse, slots = gathering.unit, gathering.inverse, gathering.slots
        gathered = gathering.all.wait()
        sound = inverse < 1e12  # neither NaN nor the inverse of a norm that counts as 1e-12
        streams = [
            None if step is None or not len(where) else _stream(step, k, gathered, where)
            for step, where in zip(steps, places, strict=True)
        ]
        sums = _global_statistics([s for s in streams if s is not None], self.world)
        gradient = self.buffers.empty("gradient", tuple(gathered.shape), torch.float32)
        taken = [where for stream, where in zip(streams, places, strict=True) if stream is not None]
        if sum(map(len, taken)) < len(gradient):
            gradient.zero_()
        losses = torch.zeros(len(steps), device=unit.device)
        for h, (step, stream) in enumerate(zip(steps, streams, strict=True)):
            if step is None or stream is None:
                continue
            statistics = sums.pop(0) if stream.exponential else None
            losses[h], towards = _finish(stream, statistics, self.world)
            if step.weight != 1:
                towards.mul_(step.weight)
            gradient.index_copy_(0, places[h], towards)
        mine = reduce_scatter_slots(gradient, slots, self.mesh.data.group)
        mine = reduce_in_place(mine, self.mesh.tensor.group)[: len(unit)]
        inverse = inverse.masked_fill(~sound, 0.0)
        self.kernels.tangent(mine, unit, inverse, torch.empty_like(inverse))
        return MicroResult(losses, mine, sound)


def _stream(step: HeadStep, k: int, gathered: Tensor, where: Tensor) -> Stream:
    shape = (len(where), gathered.shape[1])
    embeddings = step.head.buffers.empty("embeddings", shape, gathered.dtype)
    torch.index_select(gathered, 0, where, out=embeddings)
    return step.head.stream(embeddings, step.plan, k, step.rows)


def _global_statistics(streams: Sequence[Stream], world: World) -> list[Statistics]:
    """Of the exponential losses' streams, in order, over the rows of all ranks."""
    found = [stream.statistics() for stream in streams if stream.exponential]
    if world.group is None or not found:
        return [_finite_peak(each) for each in found]
    maxima = [x for each in found for x in (each.peak, each.positives.flatten())]
    most = torch.split(all_reduce(torch.cat(maxima), world.group, "max"), [len(x) for x in maxima])
    for each, peak, positives in zip(found, most[::2], most[1::2], strict=True):
        each.total *= torch.exp(each.peak - peak.clamp(min=-1e30))
        each.peak, each.positives = peak, positives.view_as(each.positives)
    totals = all_reduce(torch.cat([each.total for each in found]), world.group)
    parts = torch.split(totals, [len(each.total) for each in found])
    for each, total in zip(found, parts, strict=True):
        each.total = total
    return [_finite_peak(each) for each in found]


def _finite_peak(found: Statistics) -> Statistics:
    """A sample without any negative has a peak of -inf, with a sum of 0: any peak will do."""
    found.peak = found.peak.clamp(min=-1e30)
    return found


def _finish(stream: Stream, statistics: Statistics | None, world: World) -> tuple[Tensor, Tensor]:
    """() this rank's terms, (B_h, D) its share of the gradient of the embeddings."""
    if statistics is None:
        loss, gradient = stream.logistic()
        return loss.sum(), gradient
    loss, push, pull = stream.terms(statistics)
    # Every rank knows every sample's loss: each reports a part of them.
    mine = split(len(loss), world.rank, world.size)
    part = loss[mine.start : mine.stop].sum()
    return part, stream.exponential_gradients(statistics, push, pull)
