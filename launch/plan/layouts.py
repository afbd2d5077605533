"""Ways to lay a run out on a cluster, which of them fit, and which is fastest.

ZeRO stage (0: the plain backend) x tensor-parallel size x micro-batch x recomputation. Tensor
parallelism is not built yet: its rows say what it would bring, and are never recommended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launch.plan.cluster import Cluster
from launch.plan.deal import deal
from launch.plan.estimate import Estimate, estimate
from launch.plan.step import SourcePlan
from ovtrain.config.train import TrainConfig

STAGES = (0, 1, 2, 3)
TENSOR_SIZES = (1, 2, 4, 8)
RECOMPUTE = (0, 2, 1)
DIGITS = 5
"""Times that agree to so many digits are equally fast."""


@dataclass(frozen=True)
class Layout:
    """``stage`` 0 is run.backend=ddp."""

    stage: int
    tensor_ranks: int
    micro_batch: int
    recompute: int

    @property
    def available(self) -> bool:
        return self.tensor_ranks == 1

    def keys(self) -> list[str]:
        """As a user writes it."""
        backend = f"run.zero_stage={self.stage}" if self.stage else "run.backend=ddp"
        return [
            backend,
            f"run.micro_batch={self.micro_batch}",
            f"model.recompute={self.recompute}",
        ]

    def of(self, config: TrainConfig) -> TrainConfig:
        run = replace(config.run, micro_batch=self.micro_batch)
        if self.stage:
            run = replace(run, backend="deepspeed", zero_stage=self.stage)
        else:
            run = replace(run, backend="ddp")
        return replace(config, run=run, model=replace(config.model, recompute=self.recompute))


@dataclass(frozen=True)
class Choice:
    layout: Layout
    estimate: Estimate
    fits: bool


def rows(config: TrainConfig, cluster: Cluster, sources: Sequence[SourcePlan]) -> list[Choice]:
    """Per stage and tensor-parallel size the fastest choice that fits, or else the smallest."""
    return [
        best(_choices(config, cluster, sources, stage, size))
        for stage in STAGES
        for size in tensor_sizes(config, cluster)
    ]


def tensor_sizes(config: TrainConfig, cluster: Cluster) -> list[int]:
    """Those that divide the heads of attention and the GPUs of a node, and leave each data rank a
    sample of the batch."""
    heads, node = config.model.size.heads, cluster.asked.per_node
    return [n for n in TENSOR_SIZES if heads % n == 0 and node % n == 0]


def best(choices: Sequence[Choice]) -> Choice:
    """The fastest that fits, of equally fast ones that which recomputes least, has the fewest
    micro-steps, is of the lowest stage, takes least memory, in this order; else the smallest."""
    fitting = [choice for choice in choices if choice.fits]
    if fitting:
        return min(fitting, key=_rank)
    return min(choices, key=lambda c: c.estimate.bytes)


def _rank(choice: Choice) -> tuple[float, float, int, int, int]:
    layout, made = choice.layout, choice.estimate
    time = float(f"{made.time.total:.{DIGITS}g}")
    again = 1 / layout.recompute if layout.recompute else 0.0
    return time, again, made.dealt.micro_steps, layout.stage, made.bytes


def recommended(found: Sequence[Choice]) -> Choice | None:
    """The fastest available choice that fits; None where none does."""
    usable = [choice for choice in found if choice.fits and choice.layout.available]
    return best(usable) if usable else None


def _choices(
    config: TrainConfig,
    cluster: Cluster,
    sources: Sequence[SourcePlan],
    stage: int,
    tensor_ranks: int,
) -> list[Choice]:
    found: list[Choice] = []
    sizes = micro_batches(sources, cluster.world // tensor_ranks, config.run.micro_batch)
    for micro_batch in sizes:
        for recompute in dict.fromkeys((*RECOMPUTE, config.model.recompute)):
            layout = Layout(stage, tensor_ranks, micro_batch, recompute)
            made = estimate(layout.of(config), cluster, sources, tensor_ranks)
            found.append(Choice(layout, made, made.fits(cluster)))
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
