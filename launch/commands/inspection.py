"""report, watch: read what runs wrote; no process is started."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--out", metavar="FILE", help="Where to write it.")
def report(paths: tuple[str, ...], out: str | None) -> int:
    """Write one self-contained page on a run, on several compared, or on a demo's folder.

    A run is named by its directory, by a folder above several, or by a copy of its metrics.jsonl.
    Without --out the page is report.html in the folder, or, where several are named, in the current
    one.
    """
    from ovtrain.observability.report import write_report

    click.echo(write_report([Path(path) for path in paths], Path(out) if out else None))
    return 0


@click.command()
@click.argument("run")
@click.option("--follow", is_flag=True, help="Draw again until interrupted.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="Seconds between two drawings.",
)
def watch(run: str, follow: bool, interval: float) -> int:
    """Show the metrics of the runs below a folder."""
    from ovtrain.observability.watch import watch as show

    show(Path(run), follow, interval)
    return 0
