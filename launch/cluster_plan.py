"""What clustering will cost, from formulas alone: ``ovtrain cluster plan``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ovtrain.config.cluster import ClusterConfig
from ovtrain.config.load import checked
from ovtrain.costs import clustering as costs
from ovtrain.costs.device import DEVICES, Device, find_device
from ovtrain.schema.errors import ConfigError

CPU = "cpu"
EFFICIENCY = 0.6
"""Share of a GPU's peak that products of large blocks reach: 600 of 989 TFLOP/s on an H200."""
CPU_DEVICE = Device(tflops=0.75, memory_gb=16, memory_gbs=15, link_gbs=2)
"""Two cores of an AMD EPYC with bfloat16 products, all of it achieved: measured by
``benchmarks/kmeans.py``, no data sheet."""
CLIP_WIDTH = 1024
"""Numbers per frame of MetaCLIP-H/14."""


@dataclass(frozen=True)
class PlanRequest:
    """As the options of ``ovtrain cluster plan``; 0 and "" take the config's or a default."""

    samples: int
    gpus: int
    gpu: str
    width: int = 0
    clusters: int = 0
    top: int = 0
    iterations: int = 0
    center_shards: int = 0
    frames: int = 0
    teacher: str = "vit-h-14"
    teacher_gflops: float = 0.0
    decoded_per_s: float = 0.0
    tflops: float = 0.0
    memory_gb: float = 0.0
    disk_gbs: float = 5.0
    network_gbs: float = 50.0
    per_node: int = 8


@dataclass(frozen=True)
class Stage:
    """One line: passes of a cost; ``seconds`` of all of them."""

    name: str
    passes: int
    cost: costs.Cost

    @property
    def seconds(self) -> float:
        return self.passes * self.cost.total_s


@dataclass(frozen=True)
class ClusterPlan:
    """``sizes``: bytes on disk by what they are."""

    problem: costs.Problem
    machine: costs.Machine
    placed: costs.Layout
    memory: dict[str, int]
    sizes: dict[str, int]
    stages: tuple[Stage, ...]

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def device_hours(self) -> float:
        return self.seconds * self.machine.devices / 3600


def make_plan(asked: PlanRequest, config: ClusterConfig) -> ClusterPlan:
    """Raises ConfigError."""
    machine, config = machine_of(asked), _planned(asked, config)
    width = asked.width or _width(config, config.frames)
    problem = costs.Problem(asked.samples, width, config.clusters, config.top)
    shards = config.center_shards
    if shards and machine.devices % shards:
        raise ConfigError(f"--center-shards {shards}", f"does not divide {machine.devices} devices")
    kmeans = costs.kmeans_plan(
        problem,
        machine,
        iterations=config.iterations,
        restarts=config.restarts,
        coarse=config.coarse,
        center_shards=shards,
    )
    per_frame = asked.teacher_gflops * 1e9 or costs.tower_flops(asked.teacher)
    features = costs.feature_pass(problem, machine, per_frame, config.frames, asked.decoded_per_s)
    stages = [
        Stage("features", 1, features),
        *(Stage(f"k-means, {name}", count, cost) for name, count, cost in kmeans.parts),
        Stage("labels", 1, costs.label_pass(problem, machine, shards)),
    ]
    sizes = {
        "features": costs.feature_bytes(problem.samples, problem.width),
        "centroids": costs.centroid_bytes(problem.clusters, problem.width),
        "labels": costs.label_bytes(problem.samples, problem.top),
    }
    return ClusterPlan(problem, machine, kmeans.placed, kmeans.memory, sizes, tuple(stages))


def _planned(asked: PlanRequest, config: ClusterConfig) -> ClusterConfig:
    """The config with what was asked for instead, checked as that of a run is."""
    names = ("clusters", "top", "iterations", "center_shards", "frames")
    given = {name: getattr(asked, name) for name in names if getattr(asked, name)}
    weights = config.teacher_dir or "none are read"
    config = replace(config, **given, teacher_dir=weights)
    checked("cluster config", config)
    return config


def device_of(name: str) -> Device:
    """Raises ConfigError, which lists the known ones."""
    device = CPU_DEVICE if name.lower() == CPU else find_device(name)
    if device is None:
        known = ", ".join(name.lower().replace(" ", "-") for name in DEVICES)
        raise ConfigError(f"--gpu {name}", "unknown", allowed=f"{known}, {CPU}")
    return device


def machine_of(asked: PlanRequest) -> costs.Machine:
    """The devices that are asked about. Raises ConfigError."""
    device = device_of(asked.gpu)
    one_node = asked.gpus <= asked.per_node
    achieved = device.tflops * (1.0 if device is CPU_DEVICE else EFFICIENCY)
    return costs.Machine(
        asked.gpus,
        asked.tflops or achieved,
        asked.memory_gb or device.memory_gb,
        device.memory_gbs,
        device.link_gbs / 2 if one_node else min(device.link_gbs / 2, asked.network_gbs),
        asked.disk_gbs,
        asked.per_node,
        overlaps=device is not CPU_DEVICE,
    )


def _width(config: ClusterConfig, frames: int) -> int:
    """Of a feature, as the config makes it."""
    if config.projection:
        return config.projection
    if config.teacher == "clip":
        return (config.frame_dims or CLIP_WIDTH) * frames
    raise ConfigError(
        f"teacher={config.teacher}", "says nothing of the width of features", fix="give --width"
    )


def plan_lines(plan: ClusterPlan) -> list[str]:
    """The plan as text."""
    problem, machine, placed = plan.problem, plan.machine, plan.placed
    held = sum(plan.memory.values())
    return [
        f"problem      {problem.samples:,} samples of width {problem.width:,}, "
        f"{problem.clusters:,} centers, {problem.top} labels each",
        f"machine      {machine.devices:,} devices of {machine.tflops:g} TFLOP/s achieved, "
        f"{machine.memory_gb:g} GB; nodes: {machine.nodes:,}, of {machine.disk_gbs:g} GB/s from "
        f"disk; ranks exchange {machine.exchange_gbs:g} GB/s",
        f"layout       groups of samples: {placed.groups:,}; shards of centers in each: "
        f"{placed.center_shards:,}; ranges of a shard: {placed.ranges:,}",
        f"as config    center_shards={placed.center_shards} "
        f"memory_gib={int(machine.memory_gb * 1e9 / 2**30)}",
        *(f"on disk      {name}: {_bytes(size)}" for name, size in plan.sizes.items()),
        *(f"each device  {name}: {_bytes(size)}" for name, size in plan.memory.items()),
        f"each device  total: {_bytes(held)} of {machine.memory_gb:g} GB",
        *map(_stage_line, plan.stages),
        f"total        {_duration(plan.seconds)}, {plan.device_hours:,.3g} device-hours",
    ]


def _stage_line(stage: Stage) -> str:
    cost = stage.cost
    times = f"{stage.passes} x " if stage.passes > 1 else ""
    parts = [f"{cost.flops:.3g} FLOP"] if cost.flops else []
    parts += [f"reads {_bytes(cost.read)}"] if cost.read else []
    parts += [f"a rank sends {_bytes(cost.sent)}"] if cost.sent else []
    return (
        f"stage        {stage.name}: {times}{', '.join(parts)}; {_duration(stage.seconds)}, "
        f"bound by {cost.bound}"
    )


def plan_object(plan: ClusterPlan) -> dict[str, Any]:
    """The plan as JSON-able numbers: bytes, FLOPs, seconds."""
    return {
        **{f.name: asdict(getattr(plan, f.name)) for f in fields(plan)[:3]},
        "memory": plan.memory,
        "sizes": plan.sizes,
        "stages": [
            asdict(stage) | {"seconds": stage.seconds, "bound": stage.cost.bound}
            for stage in plan.stages
        ],
        "seconds": plan.seconds,
        "device_hours": plan.device_hours,
    }


def _bytes(size: float) -> str:
    for limit, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.3g} {unit}"
    return f"{size:.0f} B"


def _duration(seconds: float) -> str:
    for limit, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * limit:
            return f"{seconds / limit:.3g} {unit}"
    return f"{seconds:.3g} s"
