"""train, profile, plan, probe, export."""

from __future__ import annotations

from pathlib import Path

import click

from launch.commands.options import (
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
        return _dry_run(config, overrides, nodes * nproc, allow_missing_data)
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


def _dry_run(name: str, overrides: tuple[str, ...], world: int, allow_missing_data: bool) -> int:
    from launch.plan import make_plan, plan_lines
    from launch.preflight import preflight
    from ovtrain.config.load import to_yaml

    config = load_training(name, overrides)
    found = preflight(config, world)
    click.echo(to_yaml(config))
    if not found.config:
        click.echo("\n".join(plan_lines(config, make_plan(config, world))))
    for note in found.notes:
        click.echo(f"preflight    {note}")
    if allow_missing_data:
        for problem in found.data:
            click.echo(f"not found yet  {problem}", err=True)
    found.check(name, allow_missing_data=allow_missing_data)
    sound = "preflight    sound" if not found.data else "preflight    config sound, data missing"
    click.echo(sound)
    return 0


@click.command()
@click.argument("config")
@overrides
@nproc_option
@nodes_option
def plan(config: str, overrides: tuple[str, ...], nproc: int, nodes: int) -> int:
    """Print what training CONFIG costs.

    Parameters, tokens and FLOPs per step; state, class rows, samples and activations per rank."""
    from launch.plan import make_plan, plan_lines
    from ovtrain.config.validate import validate

    resolved = load_training(config, overrides)
    validate(resolved, config)
    click.echo("\n".join(plan_lines(resolved, make_plan(resolved, nodes * nproc))))
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
