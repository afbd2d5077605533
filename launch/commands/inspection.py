"""report, watch: read what runs wrote; no process is started."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("out")
def report(out: str) -> int:
    """Write OUT/report.html, one self-contained page."""
    from ovtrain.observability.report import write_report

    click.echo(write_report(Path(out)))
    return 0


@click.command()
@click.argument("run")
@click.option("--follow", is_flag=True, help="Draw again until interrupted.")
@click.option("--interval", default=5.0, show_default=True, help="Seconds between two drawings.")
def watch(run: str, follow: bool, interval: float) -> int:
    """Show the metrics of the runs below a folder."""
    from ovtrain.observability.watch import watch as show

    show(Path(run), follow, interval)
    return 0
