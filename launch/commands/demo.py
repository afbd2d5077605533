"""demo: the whole story with one command."""

from __future__ import annotations

from pathlib import Path

import click

from launch.commands.options import overrides


@click.command()
@click.option("--videos", help="Folder of your own videos instead of generated clips.")
@click.option("--out", default="runs/demo", show_default=True, help="Folder for everything.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of clips, clusters and training.")
@overrides
def demo(videos: str | None, out: str, seed: int | None, overrides: tuple[str, ...]) -> int:
    """The whole story on a laptop, video to probe.

    Clips -> shards -> labels -> two stages -> probe -> report.

    Run again, it goes on where it stopped. KEY=VALUE sets DemoConfig, e.g. seeds=1 nproc=2.
    """
    from launch.demo import Demo, load_demo
    from ovtrain.schema.errors import ConfigError

    for option, path in (("--videos", videos), ("--out", out)):
        if path and path.encode(errors="replace").decode() != path:
            raise ConfigError(option, f"{path!r} is not UTF-8", fix="rename it or link to it")
    config = load_demo(overrides, seed, own_videos=bool(videos))
    return Demo(config, Path(out), Path(videos) if videos else None).run()
