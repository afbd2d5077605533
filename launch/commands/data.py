"""prepare, data: thin; the jobs parse and check their own config."""

from __future__ import annotations

import click

from launch.commands.options import job_arguments, overrides, run_job


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option("--out", required=True, help="Folder for shards, inventory and lists.")
@click.option("--config", help="PrepareConfig YAML, a path or a shipped name.")
@click.option("--stage", help="Only this stage: inventory, cuts, plan, samples, select, ...")
@click.option("--part", help="I/N of a stage; in a SLURM array each task does its own.")
@click.option("--retry", is_flag=True, help="Try again what failed by time, memory or storage.")
@click.option("--timeout", type=float, help="Seconds that a file may take; default 300.")
@click.option("--exclude", help="Folder that is not searched; default: --out.")
@overrides
def prepare(
    source: str,
    out: str,
    config: str | None,
    stage: str | None,
    part: str | None,
    retry: bool,
    timeout: float | None,
    exclude: str | None,
    overrides: tuple[str, ...],
) -> int:
    """Videos, pictures, tars of them or a .csv list -> clips -> energy -> shards."""
    given = {"--stage": stage, "--part": part, "--timeout": timeout, "--exclude": exclude}
    extra = [word for name, value in given.items() if value for word in (name, str(value))]
    extra += ["--retry"] if retry else []
    return run_job("data_pipelines.prepare", job_arguments(source, out, config, overrides, *extra))


@click.group()
def data() -> None:
    """Check shards, repair them, find duplicates."""


@data.command()
@click.argument("shards", metavar="SHARDS_DIR")
@click.option("--media", is_flag=True, help="Decode every clip and picture, too.")
@click.option("--workers", default=2, show_default=True, help="Processes that decode.")
def verify(shards: str, media: bool, workers: int) -> int:
    """Check every shard's size, hash and index against the manifest, every sample's description."""
    return run_job("data_pipelines.shards.verify", [shards, *_decoding(media, workers)])


@data.command()
@click.argument("shards", metavar="SHARDS_DIR")
@click.option("--media", is_flag=True, help="Drop what does not decode, too.")
@click.option("--workers", default=2, show_default=True, help="Processes that decode.")
@click.option("--drop", help='.jsonl whose lines name samples to drop under "file".')
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
def repair(shards: str, media: bool, workers: int, drop: str | None, dry_run: bool) -> int:
    """Keep what is sound, name and drop what is not, write indexes and manifest anew."""
    extra = ["--drop", drop] if drop else []
    extra += ["--dry-run"] if dry_run else []
    return run_job("data_pipelines.shards.repair", [shards, *_decoding(media, workers), *extra])


@data.command()
@click.argument("shards", metavar="SHARDS_DIR")
@click.option("--features", help="Feature store of these shards, from `ovtrain cluster`.")
@click.option("--cosine", default=0.95, show_default=True, help="Least similarity of duplicates.")
@click.option("--edges", multiple=True, help=".npy of (E, 2) sample numbers that are near.")
@click.option("--out", required=True, help=".jsonl of duplicates, for `repair --drop`.")
def dedup(
    shards: str, features: str | None, cosine: float, edges: tuple[str, ...], out: str
) -> int:
    """List samples whose embeddings are near those of an earlier one."""
    given = [
        *(["--features", features] if features else []),
        *(["--edges", *edges] if edges else []),
    ]
    arguments = [shards, "--out", out, "--cosine", str(cosine), *given]
    return run_job("data_pipelines.dedup.embedded", arguments)


def _decoding(media: bool, workers: int) -> list[str]:
    return [*(["--media"] if media else []), "--workers", str(workers)]
