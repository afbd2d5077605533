"""Tensor ranks read the same samples, each by itself; here they agree on those that one could not.

A worker that dies, a slow disk or a passing error leaves a placeholder on one rank alone. Its
tensor group would then multiply different tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ovtrain.data.batch import PackedBatch, PackedSample, pack, unpack
from ovtrain.data.faults import BadSample
from ovtrain.data.loader import StepBatch
from ovtrain.distributed.collectives import gather_objects, reduce_in_place
from ovtrain.distributed.context import World


def agreed(batch: StepBatch, placeholder: PackedSample, tensor: World) -> StepBatch:
    """Collective over tensor ranks: ``batch`` with a placeholder where any of them has one, and
    what all of them say of it."""
    if tensor.size == 1:
        return batch
    own = torch.cat([micro.key == 0 for micro in batch.micro]).int()
    lost, read = reduce_in_place(torch.stack([own, 1 - own]), tensor.group, "max")
    if not (lost & read).any():  # read by one and lost by another
        return batch
    parts = lost.bool().split([len(micro.key) for micro in batch.micro])
    told = gather_objects(batch.bad, tensor.group)
    micro = [_without(m, part, placeholder) for m, part in zip(batch.micro, parts, strict=True)]
    return replace(batch, micro=micro, bad=_once(told))


def _without(batch: PackedBatch, lost: Tensor, placeholder: PackedSample) -> PackedBatch:
    given = unpack(batch)
    kept = [
        replace(placeholder, source=sample.source) if gone else sample
        for sample, gone in zip(given, lost.tolist(), strict=True)
    ]
    return pack(kept)


def _once(told: Sequence[Sequence[BadSample]]) -> list[BadSample]:
    """Each sample with the first reason that was given for it."""
    found: dict[tuple[str, str], BadSample] = {}
    for one in (one for part in told for one in part):
        found.setdefault((one.source, one.name), one)
    return list(found.values())
