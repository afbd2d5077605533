"""Training runs of an output folder: loss curves, realised view shares, speed, bad samples.

A run is a folder with ``metrics.jsonl``; runs whose folders have the same last name (stage1,
stage2) are drawn in one chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from itertools import count
from pathlib import Path

from ovtrain.observability.history import METRICS, Row, column
from ovtrain.observability.report.charts import (
    COLORS,
    CONTROL,
    NEUTRAL,
    Mark,
    Series,
    color,
    line_chart,
)
from ovtrain.observability.report.numbers import number
from ovtrain.observability.report.page import Section, absent, table
from ovtrain.observability.runs import VIDEO_VIEWS, Run, read_run, why

VIEW_COLORS = {"codec": COLORS[0], "frames": COLORS[1], "tiling": COLORS[2], "image": NEUTRAL}


@dataclass(frozen=True)
class Curve:
    """A column over the steps, ``scale`` times its values; ``always``: its absence is told."""

    title: str
    key: str
    axis: str
    scale: float = 1.0
    always: bool = False


LOSSES = (
    Curve("loss, all sources", "loss", "loss", always=True),
    Curve("loss, source ", "loss/", "loss"),
)
RATE = (Curve("learning rate", "lr", "lr"),)


def find_runs(out: Path) -> list[Run]:
    """Every run below ``out`` (or ``out`` itself), by name; controls last."""
    runs = [
        read_run(path, name, _label(name))
        for path in out.rglob(METRICS)
        if "checkpoints" not in path.parts
        for name in [str(path.parent.relative_to(out)) if path.parent != out else out.name]
    ]
    return sorted(runs, key=lambda run: (run.group, run.control, run.name))


def _label(name: str) -> str:
    parts = Path(name).parts
    return parts[-2] if len(parts) > 1 else name


def loss_section(runs: list[Run]) -> Section:
    title = "Loss"
    if not runs:
        return Section(title, absent(f"No {METRICS} below this folder: no training has logged."))
    body = ""
    for group in dict.fromkeys(run.group for run in runs):
        members = [run for run in runs if run.group == group]
        body += f'<h3>{escape(group)}</h3><div class="columns">{_charts(members)}</div>'
    return Section(title, body)


def _charts(runs: list[Run]) -> str:
    return curves(runs, LOSSES, runs[0].group) + curves(runs[:1], RATE, runs[0].group)


def curves(runs: list[Run], wanted: Sequence[Curve], link: str = "all") -> str:
    """A chart per curve that a run has logged, restarts marked; a curve of a key that ends in "/"
    is one of each key that begins so. Charts of one ``link`` are zoomed together."""
    logged = dict.fromkeys(key for run in runs for row in run.rows for key in row)
    charts = ""
    for curve in wanted:
        keys = [curve.key]
        if curve.key.endswith("/"):
            keys = [key for key in logged if key.startswith(curve.key)]
        for key in keys:
            if key in logged or curve.always:
                title = curve.title + key.removeprefix(curve.key)
                drawn = lines(runs, key, curve.scale)
                charts += line_chart(title, drawn, "step", curve.axis, marks(runs), f"step {link}")
    return charts


def marks(runs: list[Run]) -> list[Mark]:
    """Where runs were started again, and why."""
    return [
        Mark(
            float(start.get("step", 0)),
            f"{run.label}: restart {attempt} at step {start.get('step')}, {clock(start)}"
            + (f"; before it: {why(start)}" if why(start) else ""),
            shade if len(runs) > 1 else CONTROL,
        )
        for run, shade in zip(runs, colors(runs), strict=True)
        for attempt, start in enumerate(run.restarts, 1)
    ]


def clock(row: Row) -> str:
    """When a row was written, in this machine's time."""
    return f"{datetime.fromtimestamp(row['time']):%Y-%m-%d %H:%M:%S}" if "time" in row else "–"


def lines(runs: list[Run], key: str, scale: float = 1.0) -> list[Series]:
    """One line per run, in the run's colour."""
    return [
        Series(
            f"{run.label} (control)" if run.control else run.label,
            [(step, scale * value) for step, value in column(run.rows, key)],
            shade,
            run.control or shade not in COLORS,
        )
        for run, shade in zip(runs, colors(runs), strict=True)
    ]


def colors(runs: list[Run]) -> list[str]:
    free = map(color, count())
    return [CONTROL if run.control else next(free) for run in runs]


def view_section(runs: list[Run]) -> Section:
    """Realised shares of the video views beside the asked ones."""
    title = "Views"
    rows = [cells for run in runs if (cells := _view_cells(run)) is not None]
    if not rows:
        return Section(title, absent("No run has logged view counts."))
    key = " ".join(
        f'<i style="background:{shade};display:inline-block;width:10px;height:10px"></i> {name}'
        for name, shade in VIEW_COLORS.items()
    )
    head = ("run", "codec", "frames", "tiling", "asked", "image samples", "shares of all samples")
    text = '<p class="sub">Shares of the video samples by view, realised against asked. '
    return Section(title, f"{text}{key}</p>" + table(head, rows, numbers=(1, 2, 3, 4, 5)))


def _view_cells(run: Run) -> list[str] | None:
    if not run.views:
        return None
    views = {name: run.views.get(name, 0) for name in VIEW_COLORS}
    total, video = sum(views.values()), sum(views.values()) - views["image"]
    shares = [f"{views[name] / video:.3f}" if video else "–" for name in VIDEO_VIEWS]
    strip = "".join(
        f'<i style="width:{100 * found / (total or 1):.2f}%;background:{VIEW_COLORS[name]}" '
        f'title="{name}: {found}"></i>'
        for name, found in views.items()
    )
    asked = _asked(run) if video else "–"
    bar = f'<div class="share">{strip}</div>'
    return [escape(run.name), *shares, asked, str(views["image"]), bar]


def _asked(run: Run) -> str:
    asked = run.asked_views
    return " / ".join(f"{asked.get(name, 0):g}" for name in VIDEO_VIEWS) if asked else "–"


def speed_section(runs: list[Run]) -> Section:
    """Throughput of each run: medians over logged windows, the first (warm-up) left out."""
    title = "Speed"
    if not runs:
        return Section(title, absent("No training run here."))
    rows = [
        [
            escape(run.name),
            last(run, "step"),
            last(run, "loss"),
            middle(run, "samples_per_s"),
            middle(run, "tokens_per_s"),
            middle(run, "flops_per_s"),
            middle(run, "data_wait", percent=True),
            str(run.about.get("world_size", "–")),
            escape(str(run.about.get("device", "–"))),
            last(run, "filled"),
            last(run, "bad_samples"),
        ]
        for run in runs
    ]
    head = (
        *("run", "steps", "last loss", "samples/s", "tokens/s", "FLOP/s", "data wait"),
        *("ranks", "device", "tokens filled", "bad samples"),
    )
    return Section(title, table(head, rows, numbers=(1, 2, 3, 4, 5, 6, 7, 9, 10)))


def last(run: Run, key: str) -> str:
    values = [row[key] for row in run.rows if isinstance(row.get(key), (int, float))]
    return number(values[-1], 4) if values else "–"


def middle(run: Run, key: str, percent: bool = False) -> str:
    values = sorted(value for _, value in (column(run.rows, key)[1:] or column(run.rows, key)))
    if not values:
        return "–"
    found = values[len(values) // 2]
    return f"{100 * found:.1f} %" if percent else number(found)
