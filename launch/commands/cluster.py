"""cluster: run (the default), report, plan."""

from __future__ import annotations

from pathlib import Path

import click

from launch.commands.options import job_arguments, overrides, run_job

STAGES = ("features", "centers", "labels")


class DefaultRun(click.Group):
    """``cluster SHARDS ...`` is ``cluster run SHARDS ...``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asks_for_help = bool(args) and args[0] in self.get_help_option_names(ctx)
        if args and args[0] not in self.commands and not asks_for_help:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultRun)
def cluster() -> None:
    """Shards -> features -> centers -> labels; what they are worth; what they cost.

    `ovtrain cluster SHARDS_DIR --out DIR ...` is short for `ovtrain cluster run SHARDS_DIR ...`."""


@cluster.command()
@click.argument("shards", metavar="SHARDS_DIR")
@click.option("--out", required=True, help="Folder for features, centroids and labels.")
@click.option("--config", help="ClusterConfig YAML, a path or a shipped name.")
@click.option("--centroids", help="Label against these centers instead of making new ones.")
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes of this machine, one per GPU.",
)
@click.option("--stage", type=click.Choice(STAGES), help="Only this stage.")
@click.option(
    "--task", help="I/N of --stage features; in a SLURM array each task does its own parts."
)
@overrides
def run(
    shards: str,
    out: str,
    config: str | None,
    centroids: str | None,
    nproc: int,
    stage: str | None,
    task: str | None,
    overrides: tuple[str, ...],
) -> int:
    """Shards -> features -> centers -> labels.

    The same command goes on where an interrupted one stopped; a stage whose inputs and settings are
    unchanged is not run again."""
    from launch.local import run_ranks
    from launch.processes import torchrun_command

    if task and stage != "features":
        raise click.UsageError("--task needs --stage features: the other stages are one job each")
    given = {"--centroids": centroids, "--stage": stage, "--task": task}
    extra = [word for name, value in given.items() if value for word in (name, value)]
    arguments = job_arguments(shards, out, config, overrides, *extra)
    if nproc == 1:
        return run_job("clustering.run", arguments)
    command = torchrun_command(nproc, "clustering.run", *arguments)
    return run_ranks(command, Path(out), nproc, to_stderr=False)


@cluster.command()
@click.argument("out")
@click.argument("others", nargs=-1, metavar="[OTHER]...")
@click.option("--shards", help="Shards of the samples; default: where OUT was made from.")
@click.option("--classes", help="Classes file: purity and NMI, and a class below each picture.")
@click.option("--centers", type=click.IntRange(min=0), help="Centers whose samples are shown.")
@click.option("--page", help="The page's path; default OUT/report.html.")
def report(
    out: str,
    others: tuple[str, ...],
    shards: str | None,
    classes: str | None,
    centers: int | None,
    page: str | None,
) -> int:
    """Write a page on the labels in OUT: sizes, distances, margins, pictures.

    OTHER: folders of other seeds or settings over the same shards, to compare with."""
    count = None if centers is None else str(centers)
    given = {"--shards": shards, "--classes": classes, "--centers": count, "--page": page}
    extra = [word for name, value in given.items() if value is not None for word in (name, value)]
    return run_job("clustering.report", [out, *others, *extra])
