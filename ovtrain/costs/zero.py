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
    all but 0     the square of the norm: 4 bytes per group, 8 in stage 3

One rank alone gathers no weights, but reduces its gradients, with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ovtrain.costs.gathering import LIVE, PERSISTENT, PREFETCH, Recompute, gathers
from ovtrain.costs.parameters import Parameter, count, groups

ALIGNMENT = 2
"""Numbers that a rank's part of a flat group is a multiple of (NCCL's start alignment)."""
BUCKET = 5 * 10**8
"""Gradient numbers that DeepSpeed sets memory aside for, however few there are."""
COUNTER = 4
"""A float32 count of steps per tensor of AdamW."""
Traffic = dict[str, int]
"""Bytes by kind: all_reduce, all_gather, reduce_scatter."""


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


def parts(parameters: Sequence[Parameter], world: int, stage: int) -> list[int]:
    """Numbers of one rank's part of each group."""
    if stage == 3:
        return [sum(-(-p.numel // world) for p in group) for group in groups(parameters)]
    return [padded(count(group), ALIGNMENT * world) // world for group in groups(parameters)]


def persistent(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Those that stage 3 keeps whole."""
    return [p for p in parameters if p.numel <= PERSISTENT]


def encoder_state(
    parameters: Sequence[Parameter], world: int, stage: int, precision: str
) -> EncoderState:
    """What a rank holds of the encoder. ``stage`` 0: the plain backend, in either precision."""
    own, numel = weight_bytes(stage, precision), count(parameters)
    if stage == 0:
        return EncoderState(4 * numel, 4 * numel, 0, 8 * numel + COUNTER * len(parameters))
    held = parts(parameters, world, stage)
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
    *,
    prefetch: int = PREFETCH,
    live: int = LIVE,
) -> Traffic:
    """Payload of a step's collectives for the encoder's gradients and weights."""
    own, numel = weight_bytes(stage, precision), count(parameters)
    if stage == 0:
        return {"all_reduce": own * numel}
    if stage == 3:
        weights = 0
        if world > 1:
            more = micro_steps > 1
            each = gathers(tuple(parameters), world, recompute, prefetch, live, accumulated=more)
            weights = micro_steps * each.numel
            weights += sum(padded(p.numel, world) for p in persistent(parameters))
        scattered = micro_steps * sum(padded(p.numel, world) for p in parameters)
        return {
            "all_gather": own * weights,
            "reduce_scatter": own * scattered,
            "all_reduce": 8 * len(groups(parameters)),
        }
    whole = world * sum(parts(parameters, world, stage)) if world > 1 else 0
    times = micro_steps if stage == 2 else 1
    return {
        "all_gather": own * whole,
        "all_reduce": own * numel * times + 4 * len(groups(parameters)),
    }


def buffer_bytes(parameters: Sequence[Parameter], stage: int, precision: str) -> int:
    """What reducing gradients takes beside them: DeepSpeed's bucket of ``BUCKET`` numbers and a
    flat copy of what is in it, under stage 3 gathered weights (at most ``LIVE``), too; the plain
    backend's flat gradients and their reduced copy."""
    own, numel = weight_bytes(stage, precision), count(parameters)
    if stage == 0:
        return 2 * own * numel
    gathered = min(numel, LIVE) if stage == 3 else 0
    return own * (BUCKET + min(numel, BUCKET) + gathered)


def cast_bytes(parameters: Sequence[Parameter], stage: int, precision: str) -> int:
    """bf16 copies of float32 weights that autocast makes and autograd keeps until the backward pass
    is through: of the plain backend in bf16 runs; all weights, which the products' nearly are."""
    return 2 * count(parameters) if stage == 0 and precision == "bf16" else 0
