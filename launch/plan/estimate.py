"""One layout of a run on a cluster: memory, and the time of a step by what it is spent on.

Nothing is taken to overlap: as if gradients were reduced when the backward pass is through, which
is so under ZeRO without run.overlap_comm; and a step does not begin before the weights are
gathered. ZeRO-3's gathers run ahead of their use; that their time is counted whole makes it an
upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.plan.cluster import Cluster
from launch.plan.deal import Deal, deal
from launch.plan.memory import memory_of
from launch.plan.step import SourcePlan, View, drawn_rows
from launch.plan.traffic import GROUPS, Traffic, stage_of, step_traffic
from ovtrain.config.layout import data_ranks
from ovtrain.config.train import TrainConfig
from ovtrain.costs import encoder, head, links


@dataclass(frozen=True)
class StepTime:
    """Seconds: products of encoder and heads, both optimizers, collectives by kind of link."""

    encoder: float
    heads: float
    updates: float
    node: float
    network: float

    @property
    def compute(self) -> float:
        return self.encoder + self.heads + self.updates

    @property
    def total(self) -> float:
        return self.compute + self.node + self.network


@dataclass(frozen=True)
class Estimate:
    dealt: Deal
    memory: dict[str, int]
    traffic: Traffic
    time: StepTime

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())

    def fits(self, cluster: Cluster) -> bool:
        return self.bytes <= cluster.memory_gb * 1e9


def estimate(config: TrainConfig, cluster: Cluster, sources: Sequence[SourcePlan]) -> Estimate:
    """Of ``config`` as it is. Its layout is one that ``config.layout`` allows on the cluster."""
    ranks = data_ranks(config, cluster.world)
    counts = tuple(source.samples for source in sources)
    dealt = deal(counts, ranks, config.run.micro_batch)
    memory = memory_of(config, sources, dealt, cluster.world)
    traffic = step_traffic(config, sources, dealt, cluster.world)
    inside, between = _exchange(config, cluster, traffic)
    rate = cluster.tflops * 1e12
    return Estimate(
        dealt,
        memory,
        traffic,
        StepTime(
            _encoder_flops(config, sources, dealt) / rate,
            _head_flops(config, sources, cluster.world) / rate,
            _updated_bytes(config, sources, cluster, memory, ranks) / (cluster.memory_gbs * 1e9),
            inside,
            between,
        ),
    )


def _encoder_flops(config: TrainConfig, sources: Sequence[SourcePlan], dealt: Deal) -> float:
    """Of the fullest rank in a step, recomputed blocks included. Tensor ranks divide all products
    but the patch embedding's."""
    model, tensor = config.model, config.run.tensor_parallel

    def of_one(view: View) -> float:
        whole = encoder.undivided_flops(model.size, view.tokens, model.patch)
        again = encoder.recomputed_flops(model.size, view.tokens, model.recompute)
        return whole + (view.flops - whole + again) / tensor

    return dealt.most_of_a_step([sum(v.share * of_one(v) for v in s.views) for s in sources])


def _head_flops(config: TrainConfig, sources: Sequence[SourcePlan], world: int) -> float:
    width = config.model.size.width
    return sum(
        head.step_flops(
            source.samples,
            drawn_rows(config, source),
            width,
            world,
            exponential=config.head_of(source.name).loss != "logistic",
        )
        for source in sources
        if source.classes is not None and source.trains_head
    )


def _updated_bytes(
    config: TrainConfig,
    sources: Sequence[SourcePlan],
    cluster: Cluster,
    memory: dict[str, int],
    data_ranks: int,
) -> float:
    """Read and written by the optimizers: float32 weights and moments (twice), gradients, a rank's
    part of the forward pass's weights, which the plain backend has no others of; of the heads what
    belongs to the rows of a step."""
    stage, state = stage_of(config), memory["master weights and moments"]
    moved = memory["gradients"] / (data_ranks if stage == 1 else 1)
    if stage == 0:
        moved += 2.0 * (state + memory["weights"])
    else:
        moved += 2.0 * state + memory["weights"] / (data_ranks if stage < 3 else 1)
    for source in sources:
        if source.classes is not None and source.trains_head:
            own, width = config.head_of(source.name), config.model.size.width
            rows = round(drawn_rows(config, source))
            shape = (rows, width, cluster.world)
            moved += 2 * head.weight_bytes(*shape, own.rows)
            moved += 2 * head.optimizer_bytes(*shape, own.optimizer, own.moments)
    return moved


def _exchange(config: TrainConfig, cluster: Cluster, traffic: Traffic) -> tuple[float, float]:
    """Seconds by kind of link; groups take turns."""
    tensor = config.run.tensor_parallel
    spent = [
        links.seconds(found.bytes, found.count, links.of_group(cluster.links, group, tensor))
        for group in GROUPS
        if (found := traffic.of(group))
    ]
    return sum(s["node"] for s in spent), sum(s["network"] for s in spent)
