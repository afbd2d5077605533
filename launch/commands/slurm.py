"""launch slurm: submit a training config as a batch job."""

from __future__ import annotations

import click

from launch.commands.options import load_training, overrides


@click.group()
def launch() -> None:
    """Start training on a cluster."""


@launch.command()
@click.argument("config")
@overrides
@click.option("--site", help="SiteConfig YAML, a path or a shipped name.")
@click.option("--nodes", type=click.IntRange(min=1))
@click.option("--gpus-per-node", type=click.IntRange(min=0))
@click.option("--partition")
@click.option("--time", "limit", help="Wall-clock limit, e.g. 24:00:00.")
@click.option("--dry-run", is_flag=True, help="Print the sbatch call; submit nothing.")
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
    """Submit CONFIG with slurm/pretrain.sbatch; options here win over --site."""
    from launch.slurm import load_site, submit

    resolved = load_training(config, overrides)
    chosen = load_site(
        site, nodes=nodes, gpus_per_node=gpus_per_node, partition=partition, time=limit
    )
    return submit(resolved, config, chosen, dry_run=dry_run)
