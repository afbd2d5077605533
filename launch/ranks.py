"""What each rank of a run holds, from formulas alone: class rows, samples, tokens, training state.

Bytes are those of the fullest rank, of what it holds from step to step. What it needs altogether:
``launch.plan.memory``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ovtrain.config.data import mixture_counts
from ovtrain.config.layout import data_ranks
from ovtrain.config.step_plan import StepPlan, split
from ovtrain.config.train import TrainConfig
from ovtrain.costs import head, parameters, zero


@dataclass(frozen=True)
class Span:
    """Least and most over ranks (and micro-steps)."""

    least: int
    most: int

    @classmethod
    def of(cls, values: Iterable[int]) -> Span:
        found = list(values)
        return cls(min(found), max(found))

    def __str__(self) -> str:
        return f"{self.most:,}" if self.least == self.most else f"{self.least:,} to {self.most:,}"


@dataclass(frozen=True)
class HeadShare:
    """A source's class rows on a rank; ``first`` and ``last``: the rows of the first and the last
    rank. Bytes of the rows and of their optimizer's state."""

    source: str
    rows: Span
    first: range
    last: range
    rows_bytes: int
    optimizer_bytes: int


@dataclass(frozen=True)
class SourceShare:
    """A source's samples and tokens in one micro-step of a rank."""

    source: str
    samples: Span
    tokens: Span


@dataclass(frozen=True)
class RankPlan:
    """``samples``, ``tokens``: of all sources, per micro-step. ``unknown``: sources whose heads
    have unknown classes and are left out."""

    state: zero.EncoderState
    heads: tuple[HeadShare, ...]
    unknown: tuple[str, ...]
    micro_steps: int
    samples: Span
    tokens: Span
    sources: tuple[SourceShare, ...]

    @property
    def without(self) -> str:
        """Ends a line that gives bytes of all heads."""
        names = ", ".join(self.unknown)
        return f"; without the heads of {names}, whose classes are not known" if names else ""


def rank_plan(
    config: TrainConfig, world: int, lengths: Sequence[int], classes: Sequence[int | None]
) -> RankPlan:
    """``world``: all ranks. ``lengths``: tokens of a sample of each source; ``classes``: of its
    head, None where it has none or they are not known."""
    run, model = config.run, config.model
    counts = mixture_counts(config.data.sources, run.global_batch)
    ranks = data_ranks(config, world)
    deal = StepPlan.build(counts, ranks, run.micro_batch)
    held = {deal.part(share, k) for share in deal.shares for k in range(deal.micro_steps)}
    tokens = Span.of(sum(n * x for n, x in zip(part, lengths, strict=True)) for part in held)
    table = parameters.table(model.size, model.patch, norm=model.norm, pooling=model.pooling)
    stage = run.zero_stage if run.backend == "deepspeed" else 0
    return RankPlan(
        zero.encoder_state(
            parameters.part_of(table, run.tensor_parallel), ranks, stage, run.precision
        ),
        tuple(_heads(config, world, classes)),
        tuple(
            source.name
            for source, count in zip(config.data.sources, classes, strict=True)
            if source.labels and count is None
        ),
        deal.micro_steps,
        Span.of(sum(part) for part in held),
        tokens,
        tuple(_sources(config, held, lengths)),
    )


def _heads(config: TrainConfig, world: int, classes: Sequence[int | None]) -> Iterable[HeadShare]:
    width = config.model.size.width
    for source, count in zip(config.data.sources, classes, strict=True):
        if count is None:
            continue
        own, shape = config.head_of(source.name), (count, width, world)
        yield HeadShare(
            source.name,
            Span.of(len(split(count, rank, world)) for rank in range(world)),
            split(count, 0, world),
            split(count, world - 1, world),
            head.weight_bytes(*shape, own.rows),
            head.optimizer_bytes(*shape, own.optimizer, own.moments),
        )


def _sources(
    config: TrainConfig, held: Collection[Sequence[int]], lengths: Sequence[int]
) -> Iterable[SourceShare]:
    for n, source in enumerate(config.data.sources):
        samples = Span.of(part[n] for part in held)
        tokens = Span(samples.least * lengths[n], samples.most * lengths[n])
        yield SourceShare(source.name, samples, tokens)


def rank_lines(config: TrainConfig, plan: RankPlan) -> list[str]:
    """The plan of a rank as text, its bytes aside."""
    run = config.run
    how = f"ZeRO {run.zero_stage}" if run.backend == "deepspeed" else "undivided"
    if run.tensor_parallel > 1:
        how += f", one of {run.tensor_parallel} tensor ranks"
        how += " with a part of the tokens" * run.sequence_parallel
    recompute = config.model.recompute
    again = f"every {recompute}. block recomputed" if recompute else "nothing recomputed"
    steps = f"{plan.micro_steps} micro-step" + "s" * (plan.micro_steps > 1)
    return [
        f"each rank    encoder: {how}, {run.precision}, {again}",
        *(_head_line(share) for share in plan.heads),
        f"each rank    {steps} of {plan.samples} samples, {plan.tokens} tokens",
        *(
            f"each rank    source {share.source}: {share.samples} samples, {share.tokens} tokens "
            "per micro-step"
            for share in plan.sources
        ),
    ]


def _head_line(share: HeadShare) -> str:
    first, last = (f"{rows.start:,} to {rows.stop - 1:,}" for rows in (share.first, share.last))
    return (
        f"each rank    head {share.source}: {share.rows} rows (the first rank {first}, the last "
        f"{last})"
    )
