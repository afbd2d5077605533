"""Payload of a step's collectives, by kind: what ``ovtrain.distributed.traffic`` counts in a run.

Of every step after the first (ZeRO-3 records its order in the first), where each source has a
labelled sample. tests/parity/test_traffic.py holds it to what real processes exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.plan.deal import Deal
from launch.plan.step import SourcePlan, table_of
from ovtrain.config.train import TrainConfig
from ovtrain.costs import exchange, zero
from ovtrain.costs.gathering import LIVE, PREFETCH, gathers
from ovtrain.costs.parameters import Parameter, part_of


@dataclass(frozen=True)
class Traffic:
    """Bytes by kind: for the encoder's gradients and weights, for the heads; and calls of both."""

    encoder: dict[str, int]
    heads: dict[str, int]
    calls: int

    @property
    def total(self) -> dict[str, int]:
        return {k: n for k, n in exchange.added(self.encoder, self.heads).items() if n}


def stage_of(config: TrainConfig) -> int:
    """ZeRO stage, 0 for the plain backend."""
    return config.run.zero_stage if config.run.backend == "deepspeed" else 0


def step_traffic(
    config: TrainConfig,
    sources: Sequence[SourcePlan],
    dealt: Deal,
    world: int,
    *,
    tensor_ranks: int = 1,
    prefetch: int = PREFETCH,
    live: int = LIVE,
) -> Traffic:
    """``world``: ranks that the samples were dealt to; of the encoder each of them has one of
    ``tensor_ranks`` parts. The plain backend on one rank has no process group at all."""
    stage, run = stage_of(config), config.run
    if world * tensor_ranks == 1 and not stage:
        return Traffic({}, {}, 0)
    table = part_of(table_of(config), tensor_ranks)
    sent = zero.traffic(
        table,
        world,
        stage,
        run.precision,
        dealt.micro_steps,
        config.model.recompute,
        prefetch=prefetch,
        live=live,
    )
    heads = exchange.exchanged(
        head_batches(config, sources, dealt),
        dealt.slots,
        config.model.size.width,
        world,
        half=run.precision == "bf16",
    )
    return Traffic(sent, heads, _calls(config, table, world, dealt.micro_steps))


def head_batches(
    config: TrainConfig, sources: Sequence[SourcePlan], dealt: Deal
) -> list[exchange.HeadBatch]:
    return [
        exchange.HeadBatch(samples, source.labels, config.head_of(source.name).loss != "logistic")
        for source, samples in zip(sources, dealt.samples, strict=True)
        if source.trains_head
    ]


def _calls(config: TrainConfig, table: Sequence[Parameter], world: int, micro_steps: int) -> int:
    """Collective calls of a step, roughly: each has a latency."""
    stage = stage_of(config)
    heads = 2 + 2 * micro_steps
    if stage == 3:
        again, more = config.model.recompute, micro_steps > 1
        each = gathers(tuple(table), world, again, PREFETCH, LIVE, accumulated=more)
        return heads + micro_steps * (each.calls + 1) + len(zero.persistent(table)) + 2
    return heads + {0: 1, 1: 5, 2: 4 + micro_steps}[stage]
