"""A whole run on a cluster: ``ovtrain plan CONFIG --nodes 16 --gpus-per-node 8 --gpu h200``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd

from launch.plan.cluster import Cluster, Request, cluster_of
from launch.plan.estimate import Estimate, estimate
from launch.plan.layouts import Choice, recommended, rows
from launch.plan.memory import shown
from launch.plan.step import Plan, make_plan
from launch.run_folder import checkpoint_bytes
from ovtrain.config.train import TrainConfig
from ovtrain.costs import checkpoint, loading


@dataclass(frozen=True)
class JobPlan:
    """``plan``: of the config as it is; ``cores``: that loading takes on a node, by source;
    ``save``: one checkpoint."""

    config: TrainConfig
    cluster: Cluster
    plan: Plan
    estimate: Estimate
    cores: dict[str, float]
    save: checkpoint.Save

    @cached_property
    def layouts(self) -> list[Choice]:
        """Per ZeRO stage and number of tensor ranks."""
        return rows(self.config, self.cluster, self.plan.sources)

    @property
    def step_s(self) -> float:
        """With what saves keep the loop waiting."""
        return self.estimate.time.total + self.save.stall_s / self.config.run.checkpoint_every

    @property
    def samples_per_s(self) -> float:
        return self.config.run.global_batch / self.step_s

    @property
    def seconds(self) -> float:
        return self.plan.steps * self.step_s

    @property
    def flops(self) -> float:
        """Model FLOPs of the encoder in the whole run."""
        return self.plan.flops * self.plan.steps

    @property
    def mfu(self) -> float:
        """Of all devices' peak, as the run will log it."""
        return self.plan.flops / (self.step_s * self.cluster.world * self.cluster.peak * 1e12)

    @property
    def recommended(self) -> Choice | None:
        return recommended(self.layouts)


def plan_job(config: TrainConfig, asked: Request) -> JobPlan:
    """Raises ConfigError."""
    cluster = cluster_of(asked)
    plan = make_plan(config, cluster.world)
    made = estimate(config, cluster, plan.sources)
    return JobPlan(
        config,
        cluster,
        plan,
        made,
        _cores(config, asked, plan, made.time.total),
        saved(config, cluster, plan),
    )


def _cores(config: TrainConfig, asked: Request, plan: Plan, step_s: float) -> dict[str, float]:
    """Every rank of a tensor group reads its group's samples itself."""
    rates = {
        s.name: loading.per_core(s.kind, s.size, asked.clips_per_s, asked.pictures_per_s)
        for s in plan.sources
    }
    times = config.run.tensor_parallel
    return {s.name: times * s.samples / step_s / asked.nodes / rates[s.name] for s in plan.sources}


def saved(config: TrainConfig, cluster: Cluster, plan: Plan) -> checkpoint.Save:
    """One checkpoint: the encoder whole, all rows of all heads."""
    classes = [source.classes if source.trains_head else None for source in plan.sources]
    size = checkpoint_bytes(config, classes)
    disks = cluster.asked.disk_gbs * cluster.asked.nodes
    return checkpoint.save(size, cluster.world, disks, background=config.run.background_saves)


def memory_problem(
    config: TrainConfig, world: int, gpus_per_node: int, device_name: str
) -> str | None:
    """What a rank would hold beyond its device's memory, in a sentence with the keys that would
    make it fit; None where it fits. Raises ConfigError where the device is not known."""
    per_node = gcd(world, gpus_per_node)
    asked = Request(world // per_node, per_node, device_name)
    cluster = cluster_of(asked)
    sources = make_plan(config, cluster.world).sources
    made = estimate(config, cluster, sources)
    if made.fits(cluster):
        return None
    largest = sorted(made.memory.items(), key=lambda item: -item[1])[:3]
    needed = ", ".join(f"{name} {shown(size)}" for name, size in largest)
    fix = recommended(rows(config, cluster, sources))
    return (
        f"a rank needs about {shown(made.bytes)} ({needed}), {device_name} has "
        f"{cluster.memory_gb:g} GB; "
        + (f"use {' '.join(fix.layout.keys())}" if fix else "no layout fits: use more GPUs")
    )
