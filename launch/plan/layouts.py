"""Ways to lay a run out on a cluster, which of them fit, and which is fastest.

ZeRO stage (0: the plain backend) x tensor ranks, with and without sequence parallelism x
micro-batch x recomputation; only what ``ovtrain.config.layout`` allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launch.plan.cluster import Cluster
from launch.plan.deal import deal
from launch.plan.estimate import Estimate, estimate
from launch.plan.step import SourcePlan
from ovtrain.config import layout
from ovtrain.config.train import TrainConfig

STAGES = (0, 1, 2, 3)
RECOMPUTE = (0, 2, 1)
DIGITS = 5
"""Times that agree to so many digits are equally fast."""


@dataclass(frozen=True)
class Layout:
    """``stage`` 0 is run.backend=ddp; ``sequence`` needs several tensor ranks."""

    stage: int
    tensor_ranks: int
    sequence: bool
    micro_batch: int
    recompute: int

    def keys(self) -> list[str]:
        """As a user writes it, whatever the config says."""
        zero = ["run.backend=deepspeed", f"run.zero_stage={self.stage}"]
        backend = zero if self.stage else ["run.backend=ddp", "run.overlap_comm=false"]
        ahead = ["run.forward_ahead=false"] if self.stage == 3 else []
        divided = [f"run.sequence_parallel={str(self.sequence).lower()}"]
        return [
            *backend,
            *ahead,
            f"run.tensor_parallel={self.tensor_ranks}",
            *(divided if self.tensor_ranks > 1 else []),
            f"run.micro_batch={self.micro_batch}",
            f"model.recompute={self.recompute}",
        ]

    def of(self, config: TrainConfig) -> TrainConfig:
        run = replace(config.run, micro_batch=self.micro_batch, tensor_parallel=self.tensor_ranks)
        if self.tensor_ranks > 1:
            run = replace(run, sequence_parallel=self.sequence)
        if self.stage:
            run = replace(run, backend="deepspeed", zero_stage=self.stage)
        else:
            run = replace(run, backend="ddp", overlap_comm=False)
        if self.stage == 3:
            run = replace(run, forward_ahead=False)
        return replace(config, run=run, model=replace(config.model, recompute=self.recompute))


@dataclass(frozen=True)
class Choice:
    layout: Layout
    estimate: Estimate
    fits: bool


def rows(config: TrainConfig, cluster: Cluster, sources: Sequence[SourcePlan]) -> list[Choice]:
    """Per stage and number of tensor ranks the fastest choice that fits, or else the smallest."""
    return [
        best(_choices(config, cluster, sources, stage, size))
        for stage in STAGES
        for size in tensor_sizes(config, cluster, sources)
    ]


def tensor_sizes(config: TrainConfig, cluster: Cluster, sources: Sequence[SourcePlan]) -> list[int]:
    """Those that can be: allowed for the model and the ranks, a tensor group inside a node, and a
    sample of each source for each data rank."""
    world, fewest = cluster.world, min(source.samples for source in sources)
    classes = {s.name: s.classes for s in sources if s.trains_head and s.classes is not None}

    def allowed(size: int) -> bool:
        asked = replace(config, run=replace(config.run, tensor_parallel=size))
        return not layout.layout_problems(asked, world, classes)

    return [
        size
        for size in layout.tensor_sizes(config.model.size)
        if cluster.asked.per_node % size == 0 and world // size <= fewest and allowed(size)
    ]


def best(choices: Sequence[Choice]) -> Choice:
    """The fastest that fits, of equally fast ones that which recomputes least, has the fewest
    micro-steps, is of the lowest stage, has the fewest tensor ranks, takes least memory, in this
    order; else the smallest."""
    fitting = [choice for choice in choices if choice.fits]
    if fitting:
        return min(fitting, key=_rank)
    return min(choices, key=lambda c: c.estimate.bytes)


def _rank(choice: Choice) -> tuple[float, ...]:
    found, made = choice.layout, choice.estimate
    time = float(f"{made.time.total:.{DIGITS}g}")
    again = 1 / found.recompute if found.recompute else 0.0
    return time, again, made.dealt.micro_steps, found.stage, found.tensor_ranks, made.bytes


def recommended(found: Sequence[Choice]) -> Choice | None:
    """The fastest choice that fits; None where none does."""
    fitting = [choice for choice in found if choice.fits]
    return best(fitting) if fitting else None


def _choices(
    config: TrainConfig,
    cluster: Cluster,
    sources: Sequence[SourcePlan],
    stage: int,
    tensor_ranks: int,
) -> list[Choice]:
    found: list[Choice] = []
    sizes = micro_batches(sources, cluster.world // tensor_ranks, config.run.micro_batch)
    for sequence in (True, False) if tensor_ranks > 1 else (False,):
        for micro_batch in sizes:
            for recompute in dict.fromkeys((*RECOMPUTE, config.model.recompute)):
                tried = Layout(stage, tensor_ranks, sequence, micro_batch, recompute)
                made = estimate(tried.of(config), cluster, sources)
                found.append(Choice(tried, made, made.fits(cluster)))
    return found


def micro_batches(sources: Sequence[SourcePlan], ranks: int, own: int) -> list[int]:
    """The rank's whole share (0), its halves down to one sample of each source, and ``own``, the
    config's."""
    counts = tuple(source.samples for source in sources)
    share = size = deal(counts, ranks, 0).slots[0]
    found = {0}
    while size > len(counts):
        size = max(-(-size // 2), len(counts))
        found.add(size)
    if own < share:
        found.add(own)
    return sorted(found)
