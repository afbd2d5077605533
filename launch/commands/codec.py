"""codec: what a video's codec says of it, and what would be kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from launch.commands.options import overrides, run_job

ORIGINS = ("hevc-bitstream", "h264-export", "hevc-transcode", "pixel-estimate")
F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def codec() -> None:
    """Motion, residuals and bits of one video, and the patches chosen by them."""


def _window(function: F) -> F:
    options = (
        click.option("--out", required=True, metavar="F.npz", help="The file to write."),
        click.option("--origin", type=click.Choice(ORIGINS), help="Insist on one origin."),
        click.option("--start", type=click.IntRange(min=0), default=0, help="First frame."),
        click.option("--stop", type=click.IntRange(min=1), help="Frame behind the last one."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@codec.command()
@click.argument("video")
@_window
def dump(video: str, **named: Any) -> int:
    """Write a video's codec signals, frame by frame.

    Frame types, times, order counts, bytes, motion, reference distances, residuals, bits."""
    return run_job("data_pipelines.signal_files", ["dump", video, *_arguments(named)])


@codec.command()
@click.argument("video")
@click.option("--budget", type=click.IntRange(min=1), required=True, help="Patches to keep.")
@click.option("--frames", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--size", type=click.IntRange(min=1), default=224, show_default=True)
@click.option("--patch", type=click.IntRange(min=1), default=14, show_default=True)
@click.option("--mode", type=click.Choice(["global", "per_frame"]), default="global")
@_window
@overrides
def select(video: str, overrides: tuple[str, ...], **named: Any) -> int:
    """Choose the patches of a video that carry news.

    Frames are spread evenly over the video, or over --start to --stop. KEY=VALUE sets EnergyConfig,
    e.g. normalise=clip."""
    arguments = ["select", video, *overrides, *_arguments(named)]
    return run_job("data_pipelines.signal_files", arguments)


def _arguments(named: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in named.items() if value is not None]
