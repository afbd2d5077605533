"""cluster: run (the default), report, plan."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from launch.commands.options import job_arguments, overrides, run_job


class Above0(click.FloatRange):
    """Finite numbers above 0."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{found} is not a finite number.", param, ctx)
        return found


ABOVE_0 = Above0()
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
@click.option("--features", help="Use this feature store, of another seed's run say.")
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
    features: str | None,
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
    given = {"--features": features, "--centroids": centroids, "--stage": stage, "--task": task}
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
@click.option("--center", multiple=True, type=int, help="And of this one; may be repeated.")
@click.option("--page", help="The page's path; default OUT/report.html.")
def report(
    out: str,
    others: tuple[str, ...],
    shards: str | None,
    classes: str | None,
    centers: int | None,
    center: tuple[int, ...],
    page: str | None,
) -> int:
    """Write a page on the labels in OUT: sizes, distances, margins, pictures.

    OTHER: folders of other seeds or settings over the same shards, to compare with."""
    count = None if centers is None else str(centers)
    given = {"--shards": shards, "--classes": classes, "--centers": count, "--page": page}
    extra = [word for name, value in given.items() if value is not None for word in (name, value)]
    extra += [word for number in center for word in ("--center", str(number))]
    return run_job("clustering.report", [out, *others, *extra])


@cluster.command()
@click.option("--config", help="ClusterConfig YAML, a path or a shipped name.")
@click.option("--samples", type=click.IntRange(min=1), required=True)
@click.option("--width", type=click.IntRange(min=1), help="Of a feature; default: the config's.")
@click.option("--clusters", type=click.IntRange(min=1), help="Default: the config's.")
@click.option("--top", type=click.IntRange(min=1), help="Labels per sample; default: the config's.")
@click.option("--gpus", type=click.IntRange(min=1), required=True, help="Devices, one rank each.")
@click.option("--gpu", required=True, help="Their kind: h200, h100, h100-pcie, a100, ..., cpu.")
@click.option("--iterations", type=click.IntRange(min=1), help="Default: the config's.")
@click.option("--center-shards", type=click.IntRange(min=1), help="Default: the fewest that fit.")
@click.option("--frames", type=click.IntRange(min=1), help="Per sample; default: the config's.")
@click.option(
    "--teacher",
    type=click.Choice(["vit-h-14", "vit-l-14", "vit-b-14"]),
    default="vit-h-14",
    show_default=True,
    help="The teacher's size, at 224 pixels.",
)
@click.option("--teacher-gflops", type=ABOVE_0, help="Of a frame, instead of --teacher.")
@click.option(
    "--decoded-per-s", type=ABOVE_0, help="Samples that a node decodes; default: no limit."
)
@click.option("--tflops", type=ABOVE_0, help="Achieved by a device; default: 60 % of its peak.")
@click.option("--memory-gb", type=ABOVE_0, help="Of a device; default: its data sheet's.")
@click.option("--disk-gbs", type=ABOVE_0, default=5.0, show_default=True, help="GB/s a node reads.")
@click.option(
    "--network-gbs",
    type=ABOVE_0,
    default=50.0,
    show_default=True,
    help="GB/s that a device sends to other nodes.",
)
@click.option("--per-node", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Numbers instead of text.")
@overrides
def plan(config: str | None, overrides: tuple[str, ...], as_json: bool, **given: Any) -> int:
    """Print what clustering costs: bytes, FLOPs, memory and time of each stage.

    KEY=VALUE are of the config: restarts=3, coarse=1000, ..."""
    from launch.cluster_plan import PlanRequest, make_plan, plan_lines, plan_object
    from ovtrain.config.cluster import ClusterConfig
    from ovtrain.config.load import find_config, load

    resolved = load(ClusterConfig, find_config(config) if config else None, overrides)
    asked = {name: value for name, value in given.items() if value is not None}
    made = make_plan(PlanRequest(**asked), resolved)
    if as_json:
        click.echo(json.dumps(plan_object(made)))
    else:
        click.echo("\n".join(plan_lines(made)))
    return 0
