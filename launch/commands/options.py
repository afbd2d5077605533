"""Arguments that several commands share, and how they turn into jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ovtrain.config.train import TrainConfig

F = TypeVar("F", bound=Callable[..., Any])


def overrides(function: F) -> F:
    """Trailing ``key=value`` arguments."""
    return click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(function)


def nproc_option(function: F) -> F:
    return click.option(
        "--nproc",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes per node, one per GPU.",
    )(function)


def nodes_option(function: F) -> F:
    return click.option(
        "--nodes",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Nodes of --nproc processes to plan for.",
    )(function)


def run_job(module: str, arguments: Sequence[str]) -> int:
    """Run a job with this terminal's output; its exit status."""
    from launch.processes import module_command, run_process, worker_env

    return run_process(module_command(module, *arguments), worker_env(1), click.echo).status


def job_arguments(
    first: str, out: str, config: str | None, overrides: Sequence[str], *extra: str
) -> list[str]:
    """FIRST --out OUT [--config FILE] ... key=value ..., the form all data jobs take."""
    from ovtrain.config.load import find_config

    named = ["--config", str(find_config(config))] if config else []
    return [first, "--out", out, *named, *extra, *overrides]


def load_training(name: str, overrides: Sequence[str]) -> TrainConfig:
    """A training config by path or shipped name. Raises ConfigError."""
    from ovtrain.config.load import find_config, load
    from ovtrain.config.train import TrainConfig

    return load(TrainConfig, find_config(name), overrides)


def write_resolved(config: object, path: Path) -> Path:
    """The config as one YAML, for the job and for the reader."""
    from ovtrain.config.load import to_yaml
    from ovtrain.schema.atomic import atomic_open

    with atomic_open(path, "w") as handle:
        handle.write(to_yaml(config))
    return path
