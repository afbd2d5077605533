"""launch local | slurm | hosts: training on this machine, as batch jobs, on plain hosts."""

from __future__ import annotations

import click

from launch.commands.hosts import hosts
from launch.commands.options import load_training, overrides
from launch.commands.training import train


@click.group()
def launch() -> None:
    """Start training: on this machine, on a SLURM cluster, on hosts without a scheduler."""


launch.add_command(train, "local")
launch.add_command(hosts)


@launch.command()
@click.argument("config")
@overrides
@click.option("--site", help="SiteConfig YAML, a path or a shipped name.")
@click.option("--nodes", type=click.IntRange(min=1))
@click.option("--gpus-per-node", type=click.IntRange(min=0))
@click.option("--partition")
@click.option("--time", "limit", help="Wall-clock limit, e.g. 24:00:00.")
@click.option("--dry-run", is_flag=True, help="Print the sbatch calls; submit nothing.")
def slurm(
    config: str,
    overrides: tuple[str, ...],
    site: str | None,
    nodes: int | None,
    gpus_per_node: int | None,
    partition: str | None,
    limit: str | None,
    dry_run: bool,
) -> int:
    """Submit CONFIG: a training run, or a pipeline of jobs that wait for one another.

    Options here win over --site. The scripts are those of slurm/; each can be used by hand."""
    from launch.jobs import check, train_job
    from launch.pipeline import is_pipeline, load_pipeline
    from launch.pipeline import launch as launch_pipeline
    from launch.sbatch import load_site, show, submit

    pipeline = load_pipeline(config, overrides) if is_pipeline(config) else None
    named = site or (pipeline.site if pipeline else None)
    chosen = load_site(
        named, nodes=nodes, gpus_per_node=gpus_per_node, partition=partition, time=limit
    )
    if pipeline is not None:
        return launch_pipeline(config, pipeline, chosen, dry_run=dry_run)
    resolved = load_training(config, overrides)
    found = check(resolved, chosen)
    found.check(config, allow_missing_data=dry_run)
    jobs = [train_job(resolved, chosen)]
    if dry_run:
        for problem in found.data:
            click.echo(f"not found yet  {problem}", err=True)
        show(jobs)
    else:
        submit(jobs)
    return 0
