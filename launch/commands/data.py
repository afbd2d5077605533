"""prepare, cluster, data verify: thin; the jobs parse and check their own config."""

from __future__ import annotations

import click

from launch.commands.options import job_arguments, overrides, run_job


@click.command()
@click.argument("videos", metavar="VIDEOS_DIR")
@click.option("--out", required=True, help="Folder for shards, inventory and pictures.")
@click.option("--config", help="PrepareConfig YAML, a path or a shipped name.")
@overrides
def prepare(videos: str, out: str, config: str | None, overrides: tuple[str, ...]) -> int:
    """Raw video -> clips -> energy -> shards."""
    return run_job("data_pipelines.prepare", job_arguments(videos, out, config, overrides))


@click.command()
@click.argument("shards", metavar="SHARDS_DIR")
@click.option("--out", required=True, help="Folder for features, centroids and labels.")
@click.option("--config", help="ClusterConfig YAML, a path or a shipped name.")
@click.option("--centroids", help="Label against these centers instead of making new ones.")
@overrides
def cluster(
    shards: str, out: str, config: str | None, centroids: str | None, overrides: tuple[str, ...]
) -> int:
    """Shards -> features -> centers -> labels."""
    extra = ("--centroids", centroids) if centroids else ()
    arguments = job_arguments(shards, out, config, overrides, *extra)
    return run_job("clustering.run", arguments)


@click.group()
def data() -> None:
    """Check shards."""


@data.command()
@click.argument("shards", metavar="SHARDS_DIR")
def verify(shards: str) -> int:
    """Check every shard's size, hash and index against the manifest."""
    return run_job("data_pipelines.shards.verify", [shards])
