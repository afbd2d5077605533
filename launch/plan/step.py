"""What an optimizer step is made of: samples, views, tokens, FLOPs, of all ranks together.

What each rank holds: ``launch.ranks``.
Sources whose shards are not here yet are counted by their name (``image``, ``document`` or ``ocr``
in it: one picture; else video), heads whose labels are not by the classes that the config expects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from launch.ranks import RankPlan, rank_lines, rank_plan
from ovtrain.config.data import SourceConfig, mixture_counts
from ovtrain.config.model import ModelSize
from ovtrain.config.train import TrainConfig
from ovtrain.costs import encoder, head, parameters, tokens
from ovtrain.schema.errors import OvtrainError
from ovtrain.schema.labels import most_labels, read_description
from ovtrain.schema.manifest import ShardManifest

WORDS = {"image": "image", "document": "document", "ocr": "document", "video": "video"}
"""Words in the names of sources, and the kinds that they mean."""
LABELS = {"image": 10, "video": 10, "document": 100}
"""Most labels of a sample where no labels are here yet: the paper's."""


@dataclass(frozen=True)
class View:
    """What one sample costs in a view; ``share`` of the source's samples take it."""

    name: str
    share: float
    tokens: int
    flops: float


@dataclass(frozen=True)
class SourcePlan:
    """One source's part of a step, pictures of ``size`` pixels a side; ``longest``: tokens of its
    longest sample; ``classes`` is None where it trains no head, or one of unknown classes;
    ``labels``: most of one sample."""

    name: str
    kind: str
    size: int
    samples: int
    longest: int
    tokens: float
    flops: float
    trains_head: bool
    classes: int | None
    labels: int
    views: tuple[View, ...]


@dataclass(frozen=True)
class Plan:
    parameters: int
    steps: int
    world: int
    sources: tuple[SourcePlan, ...]
    rank: RankPlan

    @property
    def tokens(self) -> float:
        return sum(source.tokens for source in self.sources)

    @property
    def flops(self) -> float:
        return sum(source.flops for source in self.sources)


def make_plan(config: TrainConfig, world: int) -> Plan:
    """Costs of ``config`` on ``world`` ranks."""
    run, model = config.run, config.model
    counts = mixture_counts(config.data.sources, run.global_batch)
    sources = tuple(
        _source_plan(config, source, count)
        for source, count in zip(config.data.sources, counts, strict=True)
    )
    return Plan(
        parameters.count(
            parameters.table(model.size, model.patch, norm=model.norm, pooling=model.pooling)
        ),
        run.total_steps,
        world,
        sources,
        rank_plan(config, world, [s.longest for s in sources], [s.classes for s in sources]),
    )


def _source_plan(config: TrainConfig, source: SourceConfig, samples: int) -> SourcePlan:
    data, model = config.data, config.model
    kind, size = kind_of(source), data.size_of(source)
    lengths = tokens.per_view(size, model.patch, data.token_budget, data.chunks)
    if kind != "video":
        shares = {"image": 1.0}
    else:
        shares = {v: getattr(data.views, v) for v in ("codec", "frames", "tiling")}
    kept = {v: max(1, round(lengths[v] * data.augment.token_keep)) for v, x in shares.items() if x}
    views = tuple(
        View(v, shares[v], n, encoder.training_flops(model.size, n, model.patch))
        for v, n in kept.items()
    )
    return SourcePlan(
        source.name,
        kind,
        size,
        samples,
        max(kept.values()),
        samples * sum(v.share * v.tokens for v in views),
        samples * sum(v.share * v.flops for v in views),
        bool(source.labels),
        classes_of(source),
        labels_of(source, kind),
        views,
    )


def table_of(config: TrainConfig) -> tuple[parameters.Parameter, ...]:
    """The encoder's parameters, as one tensor rank holds them."""
    model = config.model
    return _table(model.size, model.patch, model.norm, model.pooling, config.run.tensor_parallel)


@lru_cache(maxsize=64)
def _table(
    size: ModelSize, patch: int, norm: str, pooling: bool, tensor_ranks: int
) -> tuple[parameters.Parameter, ...]:
    whole = parameters.table(size, patch, norm=norm, pooling=pooling)
    return parameters.part_of(whole, tensor_ranks)


def kind_of(source: SourceConfig) -> str:
    """From the manifest or, without one, from the name."""
    try:
        return ShardManifest.read(source.shards).kind
    except OvtrainError:
        found = (kind for word, kind in WORDS.items() if word in source.name)
        return next(found, "video")


def classes_of(source: SourceConfig) -> int | None:
    """Classes of a source's label store or, while it is not there, those that are expected."""
    expected = source.classes or None
    if not source.labels or not (Path(source.labels) / "store.json").is_file():
        return expected
    try:
        return int(read_description(source.labels, "labels")["classes"])
    except OvtrainError:
        return expected


def labels_of(source: SourceConfig, kind: str) -> int:
    """Most labels of a sample, 0 where the source trains no head."""
    if not source.labels:
        return 0
    try:
        return max(most_labels(source.labels), 1)
    except OvtrainError:
        return LABELS[kind]


def drawn_rows(config: TrainConfig, source: SourcePlan) -> float:
    """Rows of a source's head that a step uses, over all ranks: drawn ones and positives."""
    own = config.head_of(source.name)
    labels = own.positives_per_step or source.labels
    return head.expected_rows(
        source.classes or 0, own.sample_rate, source.samples * min(labels, source.labels)
    )


def plan_lines(config: TrainConfig, plan: Plan) -> list[str]:
    """The plan as text, its bytes aside."""
    run = config.run
    return [
        f"encoder      {config.model.preset}: {plan.parameters:,} parameters",
        f"run          {plan.steps:,} steps of {run.global_batch:,} samples on "
        + counted(plan.world, "rank"),
        f"step         {plan.tokens:,.0f} tokens, {plan.flops:.3e} training FLOPs",
        f"whole run    {plan.tokens * plan.steps:.3e} tokens, {plan.flops * plan.steps:.3e} FLOPs",
        *(_source_line(config, source) for source in plan.sources),
        *rank_lines(config, plan.rank),
    ]


def _source_line(config: TrainConfig, source: SourcePlan) -> str:
    text = (
        f"source       {source.name} ({source.kind}, {source.size} px): {source.samples:,} "
        f"samples, {source.tokens:,.0f} tokens per step"
    )
    if not source.trains_head:
        return text + ", no head"
    if source.classes is None:
        return text + ", head unknown until its labels exist"
    drawn = round(config.head_of(source.name).sample_rate * source.classes)
    return text + (
        f", head of {source.classes:,} classes: {drawn:,} drawn per step, about "
        f"{drawn_rows(config, source):,.0f} with the batch's positives"
    )


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)
