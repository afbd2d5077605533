"""What a training config will cost, from formulas alone: ``ovtrain plan CONFIG``.

Tokens and FLOPs count one optimizer step of all ranks. Sources whose shards are not here yet are
counted by their name (``image`` or ``ocr`` in it: one picture; else video).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ovtrain.config.data import SourceConfig, mixture_counts
from ovtrain.config.train import TrainConfig
from ovtrain.costs import encoder, head, tokens
from ovtrain.schema.errors import OvtrainError
from ovtrain.schema.labels import read_description
from ovtrain.schema.manifest import ShardManifest
from ovtrain.schema.sample import KINDS


@dataclass(frozen=True)
class SourcePlan:
    """One source's part of a step; ``classes`` is None while its labels do not exist."""

    name: str
    kind: str
    samples: int
    tokens: float
    flops: float
    classes: int | None


@dataclass(frozen=True)
class Plan:
    parameters: int
    steps: int
    nproc: int
    width: int
    state_bytes: int
    sources: tuple[SourcePlan, ...]

    @property
    def tokens(self) -> float:
        return sum(source.tokens for source in self.sources)

    @property
    def flops(self) -> float:
        return sum(source.flops for source in self.sources)


def make_plan(config: TrainConfig, nproc: int) -> Plan:
    """Costs of ``config`` on ``nproc`` ranks."""
    size, run = config.model.size, config.run
    parameters = encoder.parameters(size, config.model.patch)
    counts = mixture_counts(config.data.sources, run.global_batch)
    return Plan(
        parameters=parameters,
        steps=run.total_steps,
        nproc=nproc,
        width=size.width,
        state_bytes=encoder.state_bytes(parameters, nproc, run.zero_stage, run.precision),
        sources=tuple(
            _source_plan(config, source, count)
            for source, count in zip(config.data.sources, counts, strict=True)
        ),
    )


def _source_plan(config: TrainConfig, source: SourceConfig, samples: int) -> SourcePlan:
    data, model = config.data, config.model
    kind = kind_of(source)
    lengths = tokens.per_view(data.size, model.patch, data.token_budget, data.chunks)
    if kind != "video":
        shares = {"image": 1.0}
    else:
        shares = {v: getattr(data.views, v) for v in ("codec", "frames", "tiling")}
    per_sample = flops = 0.0
    for view, share in shares.items():
        kept = round(lengths[view] * data.augment.token_keep)
        per_sample += share * kept
        flops += share * encoder.training_flops(model.size, kept, model.patch)
    return SourcePlan(
        source.name, kind, samples, samples * per_sample, samples * flops, classes_of(source)
    )


def kind_of(source: SourceConfig) -> str:
    """From the manifest or, without one, from the name."""
    try:
        return ShardManifest.read(source.shards).kind
    except OvtrainError:
        kinds = [kind for kind in KINDS if kind in source.name]
        return kinds[0] if kinds else "video"


def classes_of(source: SourceConfig) -> int | None:
    """Classes of a source's label store; None where it is not there (yet)."""
    if not source.labels or not (Path(source.labels) / "store.json").is_file():
        return None
    try:
        return int(read_description(source.labels, "labels")["classes"])
    except OvtrainError:
        return None


def plan_lines(config: TrainConfig, plan: Plan) -> list[str]:
    """The plan as text."""
    lines = [
        f"encoder      {config.model.preset}: {plan.parameters:,} parameters, "
        f"{plan.state_bytes / 2**30:.2f} GiB of training state per rank "
        f"(ZeRO {config.run.zero_stage}, {config.run.precision})",
        f"run          {plan.steps:,} steps of {config.run.global_batch:,} samples "
        f"on {plan.nproc} ranks",
        f"step         {plan.tokens:,.0f} tokens, {plan.flops:.3e} training FLOPs",
        f"whole run    {plan.tokens * plan.steps:.3e} tokens, {plan.flops * plan.steps:.3e} FLOPs",
    ]
    return lines + [_source_line(config, plan, source) for source in plan.sources]


def _source_line(config: TrainConfig, plan: Plan, source: SourcePlan) -> str:
    text = (
        f"source       {source.name} ({source.kind}): {source.samples} samples, "
        f"{source.tokens:,.0f} tokens per step"
    )
    if source.classes is None:
        return text + ", head unknown until its labels exist"
    own = config.head_of(source.name)
    rows = head.rows_per_rank(source.classes, plan.nproc)
    shape = (source.classes, plan.width, plan.nproc)
    size = head.weight_bytes(*shape, own.rows)
    size += head.optimizer_bytes(*shape, own.optimizer, own.moments)
    return text + (
        f", head {source.classes:,} classes, {rows:,} rows ({size / 2**30:.3f} GiB) per rank, "
        f"{round(own.sample_rate * source.classes):,} sampled per step"
    )
