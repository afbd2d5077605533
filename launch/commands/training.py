"""train, profile, plan, probe, export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from launch.commands.options import (
    F,
    load_training,
    nodes_option,
    nproc_option,
    overrides,
    run_job,
    write_resolved,
)


@click.command()
@click.argument("config")
@overrides
@nproc_option
@nodes_option
@click.option("--dry-run", is_flag=True, help="Print config, plan and preflight; start nothing.")
@click.option(
    "--allow-missing-data", is_flag=True, help="With --dry-run: data that is not here is a warning."
)
def train(
    config: str,
    overrides: tuple[str, ...],
    nproc: int,
    nodes: int,
    dry_run: bool,
    allow_missing_data: bool,
) -> int:
    """Train CONFIG on this machine.

    CONFIG is a path or a shipped name. The same command resumes an interrupted run. With --dry-run
    the plan may be that of a cluster: --nodes 16 --nproc 8."""
    from launch.local import run_training
    from launch.preflight import preflight

    if allow_missing_data and not dry_run:
        raise click.UsageError("--allow-missing-data needs --dry-run")
    if nodes > 1 and not dry_run:
        raise click.UsageError(
            f"--nodes {nodes} needs --dry-run; several nodes are started by `ovtrain launch slurm`"
        )
    if dry_run:
        return _dry_run(config, overrides, nodes, nproc, allow_missing_data)
    resolved = load_training(config, overrides)
    preflight(resolved, nproc).check(config)
    out = Path(resolved.run.out)
    return run_training(write_resolved(resolved, out / "launch.yaml"), out, nproc)


@click.command()
@click.argument("config")
@overrides
@nproc_option
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--warmup", type=click.IntRange(min=1), default=10, show_default=True)
def profile(config: str, overrides: tuple[str, ...], nproc: int, steps: int, warmup: int) -> int:
    """Where the time of CONFIG's steps goes.

    Writes trace.json.gz and profile.md to RUN.OUT/profile; touches nothing else of the run."""
    from launch.local import run_ranks
    from launch.preflight import preflight
    from launch.processes import torchrun_command

    resolved = load_training(config, overrides)
    preflight(resolved, nproc).check(config)
    out = Path(resolved.run.out) / "profile"
    path = str(write_resolved(resolved, out / "config.yaml"))
    counts = ("--steps", str(steps), "--warmup", str(warmup))
    command = torchrun_command(nproc, "ovtrain.profile", path, *counts)
    return run_ranks(command, out, nproc, to_stderr=False)


def _dry_run(
    name: str, overrides: tuple[str, ...], nodes: int, nproc: int, allow_missing_data: bool
) -> int:
    from launch.plan import make_plan, plan_lines
    from launch.plan.memory import memory_lines, rank_memory
    from launch.preflight import preflight
    from ovtrain.config.load import to_yaml

    config = load_training(name, overrides)
    found = preflight(config, nodes * nproc, per_node=nproc)
    click.echo(to_yaml(config))
    if not found.config:
        plan = make_plan(config, nodes * nproc)
        held = memory_lines(rank_memory(config, plan), plan)
        click.echo("\n".join([*plan_lines(config, plan), *held]))
    for note in found.notes:
        click.echo(f"preflight    {note}")
    if allow_missing_data:
        for problem in found.data:
            click.echo(f"not found yet  {problem}", err=True)
    found.check(name, allow_missing_data=allow_missing_data)
    sound = "preflight    sound" if not found.data else "preflight    config sound, data missing"
    click.echo(sound)
    return 0


def _amount(name: str, text: str, default: float | None = None) -> Callable[[F], F]:
    return click.option(
        name,
        type=click.FloatRange(min=0, min_open=True),
        default=default,
        show_default=default is not None,
        help=text,
    )


@click.command()
@click.argument("config")
@overrides
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--gpus-per-node",
    "--nproc",
    "per_node",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
)
@click.option("--gpu", default="h200", show_default=True, help="As h100, a800; cpu.")
@_amount("--tflops", "Achieved by one GPU while it computes; default: --mfu of its peak.")
@_amount("--mfu", "Share of a GPU's peak, for any micro-batch; default 0.45, cpu 1.")
@_amount("--memory-gb", "Of one GPU; default: its data sheet's.")
@_amount("--network-gbs", "Of a node, one direction; default: an adapter per GPU.")
@_amount("--disk-gbs", "Written by a node to shared storage.", 5.0)
@_amount("--clips-per-s", "Made by a core; default: measured, 42.")
@_amount("--pictures-per-s", "Of 224 pixels, made by a core; default: measured, 511.")
@click.option("--json", "as_json", is_flag=True)
def plan(config: str, overrides: tuple[str, ...], as_json: bool, **asked: Any) -> int:
    """Print what training CONFIG costs on a cluster: memory, time, loading, layouts.

    docs/scaling.md says how each number is made."""
    from launch.plan.cluster import Request
    from launch.plan.job import plan_job
    from launch.plan.step import plan_lines
    from launch.plan.text import job_lines, job_object
    from launch.preflight import rank_problems
    from ovtrain.config.load import raise_problems
    from ovtrain.config.validate import validate

    resolved = load_training(config, overrides)
    validate(resolved, config)
    request = Request(**{k: v for k, v in asked.items() if v is not None})
    raise_problems(config, rank_problems(resolved, request.nodes * request.per_node))
    job = plan_job(resolved, request)
    if as_json:
        click.echo(json.dumps(job_object(job)))
    else:
        click.echo("\n".join([*plan_lines(resolved, job.plan), *job_lines(job)]))
    return 0


@click.command()
@click.argument("config")
@overrides
def probe(config: str, overrides: tuple[str, ...]) -> int:
    """Probe frozen encoders on labelled clips."""
    from ovtrain.config.load import checked, find_config, load
    from ovtrain.config.probe import ProbeConfig

    resolved = load(ProbeConfig, find_config(config), overrides)
    checked(config, resolved)
    path = write_resolved(resolved, Path(resolved.out) / "probe.yaml")
    return run_job("ovtrain.eval.probe", [str(path)])


@click.command()
@click.argument("run")
@click.option("--to", required=True, help="Folder for the transformers-loadable model.")
def export(run: str, to: str) -> int:
    """Write a run's encoder for transformers."""
    return run_job("ovtrain.export.run", [run, "--to", to])
