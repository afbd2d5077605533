"""Training runs of an output folder: loss curves, realised view shares, speed, bad samples.

A run is a folder with ``metrics.jsonl``; runs whose folders have the same last name (stage1,
stage2) are drawn in one chart.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from ovtrain.observability.history import METRICS, Row, column, read_object, read_rows
from ovtrain.observability.report.charts import COLORS, CONTROL, NEUTRAL, Series, line_chart, number
from ovtrain.observability.report.page import Section, absent, table

VIEW_COLORS = {"codec": COLORS[0], "frames": COLORS[1], "tiling": COLORS[2], "image": NEUTRAL}


@dataclass(frozen=True)
class Run:
    """One run folder; ``name`` is its path inside the output folder."""

    name: str
    folder: Path
    rows: list[Row]
    about: Row

    @property
    def group(self) -> str:
        return self.folder.name

    @property
    def label(self) -> str:
        """The part of the name that tells it from other runs of its group."""
        parts = Path(self.name).parts
        return parts[-2] if len(parts) > 1 else self.name

    @property
    def control(self) -> bool:
        return "shuffled" in self.name


def find_runs(out: Path) -> list[Run]:
    """Every run below ``out`` (or ``out`` itself), by name; controls last."""
    runs = [
        Run(
            str(path.parent.relative_to(out)) if path.parent != out else out.name,
            path.parent,
            read_rows(path),
            read_object(path.parent / "run.json") or {},
        )
        for path in out.rglob(METRICS)
        if "checkpoints" not in path.parts
    ]
    return sorted(runs, key=lambda run: (run.group, run.control, run.name))


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
    keys = dict.fromkeys(
        key for run in runs for row in run.rows for key in row if key.startswith("loss/")
    )
    charts = line_chart("loss, all sources", _lines(runs, "loss"), "step", "loss")
    for key in keys:
        charts += line_chart(f"loss, source {key[5:]}", _lines(runs, key), "step", "loss")
    return charts + line_chart("learning rate", _lines(runs[:1], "lr"), "step", "lr")


def _lines(runs: list[Run], key: str) -> list[Series]:
    colors = iter(COLORS * len(runs))
    return [
        Series(
            f"{run.label} (control)" if run.control else run.label,
            column(run.rows, key),
            CONTROL if run.control else next(colors),
            run.control,
        )
        for run in runs
    ]


def view_section(runs: list[Run]) -> Section:
    """Realised shares of the video views beside the asked ones."""
    title = "Views"
    rows = [cells for run in runs if (cells := _view_cells(run)) is not None]
    if not rows:
        return Section(title, absent("No run has logged view counts."))
    key = " ".join(
        f'<i style="background:{color};display:inline-block;width:10px;height:10px"></i> {name}'
        for name, color in VIEW_COLORS.items()
    )
    head = ("run", "codec", "frames", "tiling", "asked", "image samples", "shares of all samples")
    text = '<p class="sub">Shares of the video samples by view, realised against asked. '
    return Section(title, f"{text}{key}</p>" + table(head, rows, numbers=(1, 2, 3, 4, 5)))


def _view_cells(run: Run) -> list[str] | None:
    counted = [row["views"] for row in run.rows if isinstance(row.get("views"), dict)]
    if not counted:
        return None
    views = {name: int(counted[-1].get(name, 0)) for name in VIEW_COLORS}
    total, video = sum(views.values()), sum(views.values()) - views["image"]
    shares = [f"{views[name] / video:.3f}" if video else "–" for name in list(VIEW_COLORS)[:3]]
    strip = "".join(
        f'<i style="width:{100 * count / (total or 1):.2f}%;background:{VIEW_COLORS[name]}" '
        f'title="{name}: {count}"></i>'
        for name, count in views.items()
    )
    asked = _asked(run.folder) if video else "–"
    bar = f'<div class="share">{strip}</div>'
    return [escape(run.name), *shares, asked, str(views["image"]), bar]


def _asked(folder: Path) -> str:
    """The asked shares of a run's config.yaml, or a dash where it cannot be read."""
    from ovtrain.config.load import load
    from ovtrain.config.train import TrainConfig
    from ovtrain.schema.errors import ConfigError

    try:
        views = load(TrainConfig, folder / "config.yaml").data.views
    except ConfigError:
        return "–"
    return f"{views.codec:g} / {views.frames:g} / {views.tiling:g}"


def speed_section(runs: list[Run]) -> Section:
    """Throughput of each run: medians over logged windows, the first (warm-up) left out."""
    title = "Speed"
    if not runs:
        return Section(title, absent("No training run here."))
    rows = [
        [
            escape(run.name),
            _last(run, "step"),
            _last(run, "loss"),
            _median(run, "samples_per_s"),
            _median(run, "tokens_per_s"),
            _median(run, "flops_per_s"),
            _median(run, "data_wait", percent=True),
            str(run.about.get("world_size", "–")),
            escape(str(run.about.get("device", "–"))),
            _last(run, "filled"),
            _last(run, "bad_samples"),
        ]
        for run in runs
    ]
    head = (
        *("run", "steps", "last loss", "samples/s", "tokens/s", "FLOP/s", "data wait"),
        *("ranks", "device", "tokens filled", "bad samples"),
    )
    return Section(title, table(head, rows, numbers=(1, 2, 3, 4, 5, 6, 7, 9, 10)))


def _last(run: Run, key: str) -> str:
    values = [row[key] for row in run.rows if isinstance(row.get(key), (int, float))]
    return number(values[-1], 4) if values else "–"


def _median(run: Run, key: str, percent: bool = False) -> str:
    values = sorted(value for _, value in (column(run.rows, key)[1:] or column(run.rows, key)))
    if not values:
        return "–"
    middle = values[len(values) // 2]
    return f"{100 * middle:.1f} %" if percent else number(middle)
