"""A job's plan as lines and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from launch.plan.estimate import Estimate
from launch.plan.job import JobPlan
from launch.plan.layouts import Choice
from launch.plan.memory import memory_lines, shown
from launch.plan.step import counted
from launch.plan.traffic import GROUPS
from ovtrain.costs import links
from ovtrain.costs.collectives import Collectives, added
from ovtrain.costs.encoder import pooling_parameters


def job_lines(job: JobPlan) -> list[str]:
    """What follows the lines of ``plan_lines``."""
    return [
        _machine(job),
        *_parameters(job),
        *_flops(job),
        *_memory(job),
        *_traffic(job),
        *_time(job),
        *_around(job),
        *_layouts(job),
    ]


def _machine(job: JobPlan) -> str:
    cluster, links_of = job.cluster, job.cluster.links
    nodes = counted(links_of.nodes, "node")
    return (
        f"machine      {nodes} of {links_of.per_node} {cluster.asked.gpu}: "
        f"{cluster.peak:g} TFLOP/s at most, {cluster.tflops:.4g} taken while computing, "
        f"{cluster.memory_gb:g} GB; links {links_of.node_gbs:g} GB/s a GPU and direction, network "
        f"{links_of.network_gbs:g} GB/s a node"
    )


def _parameters(job: JobPlan) -> list[str]:
    size, width = job.config.model.size, job.config.model.size.width
    pooling = pooling_parameters(size) if job.config.model.pooling else 0
    heads = sum((s.classes or 0) * width for s in job.plan.sources if s.trains_head)
    return [
        f"parameters   encoder {job.plan.parameters - pooling:,}, pooling {pooling:,}, heads "
        f"{heads:,}"
    ]


def _flops(job: JobPlan) -> list[str]:
    return [
        f"sample       {source.name}, {view.name} ({view.share:.1%}): {view.tokens:,} tokens, "
        f"{view.flops / 1e12:.4g} TFLOP"
        for source in job.plan.sources
        for view in source.views
    ]


def _memory(job: JobPlan) -> list[str]:
    return memory_lines(job.estimate.memory, job.plan, job.cluster.memory_gb * 1e9)


def _traffic(job: JobPlan) -> list[str]:
    return [
        *(
            f"exchanged    {among}{kind}: encoder {_sent(encoder, kind)}, heads "
            f"{_sent(heads, kind)} per step"
            for among, encoder, heads in _exchanged(job)
            for kind in sorted((encoder + heads).calls)
        ),
        f"exchanged    {shown(_brought(job))} into each node from the others per step",
    ]


def _exchanged(job: JobPlan) -> list[tuple[str, Collectives, Collectives]]:
    """Encoder and heads by group of ranks; all in one where there is one kind of group."""
    traffic, nothing = job.estimate.traffic, Collectives()
    if job.config.run.tensor_parallel == 1:
        return [("", added(traffic.encoder.values()), added(traffic.heads.values()))]
    names = {"data": "data ranks, ", "tensor": "tensor ranks, ", "world": "all ranks, "}
    return [
        (names[group], traffic.encoder.get(group, nothing), traffic.heads.get(group, nothing))
        for group in GROUPS
    ]


def _sent(found: Collectives, kind: str) -> str:
    if kind not in found.calls:
        return "nothing"
    return f"{shown(found.bytes[kind])} in {counted(found.calls[kind], 'call')}"


def _brought(job: JobPlan) -> float:
    """Bytes into a node from the others, of all groups that have members there."""
    cluster, tensor = job.cluster.links, job.config.run.tensor_parallel
    side = {"data": links.side_by_side(cluster, tensor)}
    return sum(
        links.node_bytes(kind, size, links.of_group(cluster, group, tensor).nodes)
        * side.get(group, 1)
        for group in GROUPS
        for kind, size in job.estimate.traffic.of(group).bytes.items()
    )


def _time(job: JobPlan) -> list[str]:
    time = job.estimate.time
    parts = {
        "encoder": time.encoder,
        "heads": time.heads,
        "optimizers": time.updates,
        "links in a node": time.node,
        "network": time.network,
        "saves": job.step_s - time.total,
    }
    spent = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in parts.items())
    world = job.cluster.world
    return [
        f"step time    {1e3 * job.step_s:.1f} ms: {spent}",
        f"speed        {job.samples_per_s:,.0f} samples/s, MFU {job.mfu:.1%}",
        f"duration     {_lasting(job.seconds)} ({job.seconds * world / 3600:,.0f} "
        f"device-hours) for {job.plan.steps:,} steps; at an MFU of "
        f"{job.cluster.tflops / job.cluster.peak:.0%} alone "
        f"{_lasting(job.flops / (world * job.cluster.tflops * 1e12))}",
    ]


def _lasting(seconds: float) -> str:
    units = (("days", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
    unit, size = next((u for u in units if seconds >= u[1]), ("ms", 1e-3))
    return f"{seconds / size:.3g} {unit}"


def _around(job: JobPlan) -> list[str]:
    run, save = job.config.run, job.save
    cores = ", ".join(f"{name} {n:.1f}" for name, n in job.cores.items())
    every = run.checkpoint_every * job.estimate.time.total
    return [
        f"loading      {sum(job.cores.values()):.1f} cores a node ({cores}); the config starts "
        f"{job.config.data.workers * job.cluster.links.per_node} workers there",
        f"checkpoint   {shown(save.bytes)}, written in {_lasting(save.write_s)}, every "
        f"{_lasting(every)}; the loop waits {_lasting(save.stall_s)}{job.plan.rank.without}",
        *(
            ["checkpoint   the next is due before one is written: raise run.checkpoint_every"]
            if save.write_s > every
            else []
        ),
    ]


def _layouts(job: JobPlan) -> list[str]:
    head = "layout       ZeRO  tensor     micro-batch  recompute  memory     step        fits"
    found = [head, *(_row(choice) for choice in job.layouts)]
    best = job.recommended
    if best is None:
        return [*found, "recommended  none fits: use more GPUs, or ones with more memory"]
    keys = " ".join(best.layout.keys())
    return [*found, f"recommended  {keys} ({1e3 * best.estimate.time.total:.1f} ms a step)"]


def _row(choice: Choice) -> str:
    layout, made = choice.layout, choice.estimate
    tensor = f"{layout.tensor_ranks}" + " + seq" * layout.sequence
    return (
        f"layout       {layout.stage:<5} {tensor:<10} {layout.micro_batch:<12} "
        f"{layout.recompute:<10} {shown(made.bytes):<10} {1e3 * made.time.total:<8.1f} ms "
        f"{'yes' if choice.fits else 'no'}"
    )


def job_object(job: JobPlan) -> dict[str, Any]:
    """The plan as JSON-able numbers: bytes, FLOPs, seconds."""
    best = job.recommended
    return {
        "machine": asdict(job.cluster),
        "parameters": job.plan.parameters,
        "steps": job.plan.steps,
        "flops_per_step": job.plan.flops,
        "flops": job.flops,
        "tokens_per_step": job.plan.tokens,
        "sources": [asdict(source) for source in job.plan.sources],
        **_estimate_object(job.estimate),
        "fits": job.estimate.fits(job.cluster),
        "step_s": job.step_s,
        "samples_per_s": job.samples_per_s,
        "mfu": job.mfu,
        "seconds": job.seconds,
        "device_hours": job.seconds * job.cluster.world / 3600,
        "loader_cores_per_node": job.cores,
        "checkpoint": asdict(job.save),
        "layouts": [
            asdict(choice.layout) | {"fits": choice.fits} | _estimate_object(choice.estimate)
            for choice in job.layouts
        ],
        "recommended": best.layout.keys() if best else None,
    }


def _estimate_object(made: Estimate) -> dict[str, Any]:
    return {
        "memory": made.memory,
        "exchanged": {
            group: {"bytes": found.bytes, "calls": found.calls}
            for group in GROUPS
            if (found := made.traffic.of(group))
        },
        "time": asdict(made.time),
    }
