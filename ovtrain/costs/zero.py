"""What ZeRO holds and sends for the encoder, by DeepSpeed's own rules (0.19), to the byte.

Stage 0 stands for the plain backend: all state in float32, nothing divided. P parameters in two
groups (decayed, not decayed), W ranks, K micro-steps, b bytes of a weight in the forward pass (2 in
bf16 runs, 4 in fp32).

Held by a rank from step to step
    stages 1, 2   each group's weights flat, padded to a multiple of 2 W (its ``alignment``), whole;
                  the optimizer's float32 copy and both moments of one of W equal parts
    stage 3       of each parameter one of W equal parts, rounded up; parameters of at most
                  ``PERSISTENT`` numbers whole beside it (where W > 1); the optimizer's as above
    all           DeepSpeed keeps the float32 copy in fp32 runs, too; a count of steps per tensor
                  of the optimizer

Payload of a step (an all-reduce: the tensor; all-gather and reduce-scatter: all W parts)
    stage 0       all-reduce 4 P
    stage 1       all-reduce b P, once; all-gather of the padded weights. DeepSpeed all-reduces
                  where a reduce-scatter of half the traffic would do
    stage 2       all-reduce b P in every micro-step; all-gather as stage 1
    stage 3       reduce-scatter of the padded gradients in every micro-step; all-gather of weights
                  for forward and backward passes (``costs.gathering``), of persistent ones once
    all but 0     the square of the norm: 4 bytes per group; 8 in stage 3, per piece of a group.
                  Under tensor parallelism the tensor ranks reduce it as well

Calls of a step
    stage 0       an all-reduce per bucket of the plain backend
    stages 1, 2   a reduction per bucket of numbers (``costs.buckets``), in stage 2 in every
                  micro-step; an all-gather and a norm per group
    stage 3       a reduction per bucket in every micro-step; a gather per fetch, one for each
                  persistent parameter; a norm per piece of ``SUB_GROUP`` numbers

One rank alone gathers no weights, but reduces its gradients, with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ovtrain.costs.buckets import DEFAULT, Limits, cut_into_buckets, reductions, sub_groups
from ovtrain.costs.collectives import Collectives
from ovtrain.costs.gathering import LIVE, PERSISTENT, Recompute, gathers
from ovtrain.costs.parameters import Parameter, count, groups

ALIGNMENT = 2
"""Numbers that a rank's part of a flat group is a multiple of (NCCL's start alignment)."""
COUNTER = 4
"""A float32 count of steps per tensor of AdamW."""


@dataclass(frozen=True)
class EncoderState:
    """Bytes on one rank. weights: of the forward pass; gradients: at the end of the backward pass;
    master: the float32 copy that is not the weights themselves; moments: both, and the counts."""

    weights: int
    gradients: int
    master: int
    moments: int

    @property
    def optimizer(self) -> int:
        return self.master + self.moments

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def weight_bytes(stage: int, precision: str) -> int:
    """Of a number of the forward pass's weights, and of their gradients."""
    return 2 if stage and precision == "bf16" else 4


def padded(numel: int, multiple: int) -> int:
    return -(-numel // multiple) * multiple


def parts(
    parameters: Sequence[Parameter], world: int, stage: int, limits: Limits = DEFAULT
) -> list[int]:
    """Numbers of one rank's part of each group, in stage 3 of each piece of one."""
    if stage == 3:
        return [sum(piece) for piece in sub_groups(parameters, world, limits.sub_group)]
    return [padded(count(group), ALIGNMENT * world) // world for group in groups(parameters)]


def persistent(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Those that stage 3 keeps whole."""
    return [p for p in parameters if p.numel <= PERSISTENT]


def encoder_state(
    parameters: Sequence[Parameter],
    world: int,
    stage: int,
    precision: str,
    limits: Limits = DEFAULT,
) -> EncoderState:
    """What a rank holds of the encoder. ``stage`` 0: the plain backend, in either precision."""
    own, numel = weight_bytes(stage, precision), count(parameters)
    if stage == 0:
        return EncoderState(4 * numel, 4 * numel, 0, 8 * numel + COUNTER * len(parameters))
    held = parts(parameters, world, stage, limits)
    part = sum(held)
    if stage == 3:
        whole = sum(padded(p.numel, world) for p in persistent(parameters))
        weights = part + (whole if world > 1 else 0)
    else:
        weights = part * world
    # Stages 2 and 3 keep a rank's part of the gradients, stage 1 all of them. The float32 copy that
    # the optimizer takes is made when the activations are gone.
    gradients = numel if stage == 1 else part
    moments = 8 * part + COUNTER * len(held)
    return EncoderState(own * weights, own * gradients, 4 * part, moments)


def traffic(
    parameters: Sequence[Parameter],
    world: int,
    stage: int,
    precision: str,
    micro_steps: int,
    recompute: Recompute = 0,
    limits: Limits = DEFAULT,
    *,
    overlap: bool = False,
) -> Collectives:
    """A step's collectives for the encoder's gradients and weights, and their norm's over ``world``
    ranks."""
    if stage == 0:
        buckets = cut_into_buckets([p.numel for p in reversed(parameters)], limits.plain)
        return Collectives({"all_reduce": 4 * count(parameters)}, {"all_reduce": len(buckets)})
    own = weight_bytes(stage, precision)
    found = norm(parameters, world, stage, limits)
    if stage == 3:
        found += _scattered(parameters, world, own, limits).times(micro_steps)
        if world > 1:
            found += _gathered(parameters, world, own, micro_steps, recompute, limits)
        return found
    reduced = Collectives(
        {"all_reduce": own * count(parameters)},
        {"all_reduce": reductions(parameters, stage, limits.bucket, overlap=overlap)},
    )
    found += reduced.times(micro_steps if stage == 2 else 1)
    if world > 1:
        for part in parts(parameters, world, stage):
            found += Collectives.of("all_gather", own * world * part)
    return found


def norm(
    parameters: Sequence[Parameter], world: int, stage: int, limits: Limits = DEFAULT
) -> Collectives:
    """Of the squared norms that stages 1 to 3 reduce over ``world`` data ranks, and once more over
    the tensor ranks where there are several."""
    each = 8 if stage == 3 else 4
    return Collectives.of("all_reduce", each, len(parts(parameters, world, stage, limits)))


def _scattered(
    parameters: Sequence[Parameter], world: int, number: int, limits: Limits
) -> Collectives:
    """Stage 3's gradients of a micro-step; ``number``: bytes of one."""
    whole = sum(padded(p.numel, world) for p in parameters)
    calls = reductions(parameters, 3, limits.bucket)
    return Collectives({"reduce_scatter": number * whole}, {"reduce_scatter": calls})


def _gathered(
    parameters: Sequence[Parameter],
    world: int,
    number: int,
    micro_steps: int,
    recompute: Recompute,
    limits: Limits,
) -> Collectives:
    """Stage 3's weights of a step: those fetched for each micro-step, persistent ones one by one
    behind the update."""
    fetched = gathers(
        tuple(parameters),
        world,
        recompute,
        limits.prefetch,
        limits.live,
        accumulated=micro_steps > 1,
    )
    small = [padded(p.numel, world) for p in persistent(parameters)]
    return Collectives(
        {"all_gather": number * (micro_steps * fetched.numel + sum(small))},
        {"all_gather": micro_steps * fetched.calls + len(small)},
    )


def buffer_bytes(
    parameters: Sequence[Parameter],
    stage: int,
    precision: str,
    limits: Limits = DEFAULT,
    *,
    overlap: bool = False,
) -> int:
    """What reducing gradients takes beside them: DeepSpeed's bucket (two with ``overlap`` under
    stages 1 and 2) and a flat copy of what is in one, under stage 3 gathered weights (at most
    ``LIVE``), too; the plain backend's flat gradients."""
    own, numel = weight_bytes(stage, precision), count(parameters)
    if stage == 0:
        return own * numel
    gathered = min(numel, LIVE) if stage == 3 else 0
    buckets = limits.bucket * (2 if overlap and stage < 3 else 1)
    return own * (buckets + min(numel, limits.bucket) + gathered)


def cast_bytes(parameters: Sequence[Parameter], stage: int, precision: str) -> int:
    """bf16 copies of float32 weights that autocast makes and autograd keeps until the backward pass
    is through: of the plain backend in bf16 runs; all weights, which the products' nearly are."""
    return 2 * count(parameters) if stage == 0 and precision == "bf16" else 0
