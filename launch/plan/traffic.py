"""Calls and payload of a step's collectives, by group of ranks and by kind: what
``ovtrain.distributed.traffic`` counts in a run.

Of every step after the first (ZeRO-3 records its order in the first), where each source has a
labelled sample. tests/parity/test_traffic.py holds it to what real processes exchange. Tensor
groups exchange tokens: here those of the data rank with most, each source's samples of its mean
length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.plan.deal import Deal
from launch.plan.step import SourcePlan, table_of
from ovtrain.config.layout import data_ranks
from ovtrain.config.train import TrainConfig
from ovtrain.costs import encoder, exchange, tensor_parallel, zero
from ovtrain.costs.buckets import DEFAULT, PLAIN_BUCKET, Limits
from ovtrain.costs.collectives import Collectives, added

GROUPS = ("data", "tensor", "world")
"""Data ranks with the same part of the encoder; tensor ranks with the same samples; all ranks."""


@dataclass(frozen=True)
class Traffic:
    """By group: for the encoder, its gradients and weights; for the heads."""

    encoder: Mapping[str, Collectives]
    heads: Mapping[str, Collectives]

    def of(self, group: str) -> Collectives:
        return added(part[group] for part in (self.encoder, self.heads) if group in part)

    @property
    def total(self) -> Collectives:
        """What a rank takes part in."""
        return added(map(self.of, GROUPS))


def stage_of(config: TrainConfig) -> int:
    """ZeRO stage, 0 for the plain backend."""
    return config.run.zero_stage if config.run.backend == "deepspeed" else 0


def limits_of(config: TrainConfig) -> Limits:
    """As ``engine/deepspeed_backend.py`` sets them."""
    return Limits(bucket=PLAIN_BUCKET) if config.run.overlap_comm else DEFAULT


def step_traffic(
    config: TrainConfig,
    sources: Sequence[SourcePlan],
    dealt: Deal,
    world: int,
    limits: Limits | None = None,
    held: Sequence[tuple[int, int]] | None = None,
) -> Traffic:
    """On ``world`` ranks, to whose data ranks the samples were dealt. ``held``: tokens and samples
    (placeholders among them) of each micro-step of one data rank, where they are known. The plain
    backend on one rank has no process group at all."""
    run, limits = config.run, limits or limits_of(config)
    if world == 1 and not stage_of(config):
        return Traffic({}, {})
    heads = exchange.exchanged(
        head_batches(config, sources, dealt),
        dealt.slots,
        config.model.size.width,
        data_ranks(config, world),
        run.tensor_parallel,
        half=run.precision == "bf16",
    )
    if held is None:
        mean = [source.tokens / source.samples for source in sources]
        held = [
            (round(n), samples) for n, samples, times in dealt.fullest(mean) for _ in range(times)
        ]
    return Traffic(_of_encoder(config, dealt, world, limits, held), heads)


def _of_encoder(
    config: TrainConfig,
    dealt: Deal,
    world: int,
    limits: Limits,
    held: Sequence[tuple[int, int]],
) -> dict[str, Collectives]:
    run, stage, ranks = config.run, stage_of(config), data_ranks(config, world)
    table = table_of(config)
    found: dict[str, Collectives] = {}
    if stage or ranks > 1:
        found["data"] = zero.traffic(
            table,
            ranks,
            stage,
            run.precision,
            dealt.micro_steps,
            config.model.recompute,
            limits,
            overlap=run.overlap_comm,
        )
    if run.tensor_parallel > 1:
        # The plain backend adds the squares of the cut parameters up. A flag per sample says which
        # are unsound.
        squares = zero.norm(table, ranks, stage, limits) if stage else _SQUARES
        flags = Collectives.of("all_reduce", 4 * sum(samples for _, samples in held))
        found["tensor"] = squares + flags + _activations(config, held)
    return found


_SQUARES = Collectives.of("all_reduce", 4)


def _activations(config: TrainConfig, held: Sequence[tuple[int, int]]) -> Collectives:
    """What a tensor group exchanges in forward and backward passes."""
    run, model = config.run, config.model
    activations = tensor_parallel.Activations(
        model.size,
        run.tensor_parallel,
        run.sequence_parallel,
        encoder.NUMBER_BYTES[run.precision],
        zero.weight_bytes(stage_of(config), run.precision),
        model.recompute,
        model.norm,
        model.pooling,
    )
    alike = Counter(held).items()
    return added(tensor_parallel.exchanged(activations, *m).times(n) for m, n in alike)


def head_batches(
    config: TrainConfig, sources: Sequence[SourcePlan], dealt: Deal
) -> list[exchange.HeadBatch]:
    return [
        exchange.HeadBatch(samples, source.labels, config.head_of(source.name).loss != "logistic")
        for source, samples in zip(sources, dealt.samples, strict=True)
        if source.trains_head
    ]
