"""Sections on one run, or on several beside one another: summary, curves, starts, config."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

from ovtrain.observability.history import Row, column
from ovtrain.observability.report.charts import COLORS, Series, line_chart
from ovtrain.observability.report.data import PANELS, pictures
from ovtrain.observability.report.numbers import number
from ovtrain.observability.report.page import Section, absent, table
from ovtrain.observability.report.training import (
    LOSSES,
    RATE,
    Curve,
    clock,
    colors,
    curves,
    last,
    middle,
)
from ovtrain.observability.runs import Run, part, why

TAIL = 20
FEW = 3
PICTURES = 2
"""Pictures of one source."""
LEARNING = (*LOSSES, Curve("gradient norm, before clipping", "grad_norm", "norm"), *RATE)
SPEED = (
    Curve("samples per second", "samples_per_s", "samples/s"),
    Curve("tokens per second", "tokens_per_s", "tokens/s"),
    Curve("model FLOPs utilisation", "mfu", "%", 100.0),
    Curve("time per step", "step_ms", "ms"),
    Curve("waiting for data", "data_wait", "% of the time", 100.0),
    Curve("communication", "comm", "% of the time", 100.0),
    Curve("slowest rank's own time per step", "rank_ms_max", "ms"),
    Curve("most memory of a rank", "memory_mib_max", "MiB"),
)


def summary_section(runs: list[Run]) -> Section:
    """One column per run."""
    rows: list[tuple[str, Callable[[Run], str]]] = [
        ("state", _state),
        ("steps", lambda run: _of(run.step, run.total_steps)),
        ("samples", lambda run: number(run.samples, 4) if run.samples else "–"),
        ("last loss", lambda run: last(run, "loss")),
    ]
    for source in dict.fromkeys(source for run in runs for source in run.sources):
        rows.append((f"loss, {source}", _tail(f"loss/{source}")))
    rows += [
        ("samples/s", lambda run: middle(run, "samples_per_s")),
        ("tokens/s", lambda run: middle(run, "tokens_per_s")),
        ("FLOP/s", lambda run: middle(run, "flops_per_s")),
        ("MFU", lambda run: middle(run, "mfu", percent=True)),
        ("waiting for data", lambda run: middle(run, "data_wait", percent=True)),
        ("communication", lambda run: middle(run, "comm", percent=True)),
        ("most memory of a rank, MiB", lambda run: last(run, "memory_mib_max")),
        ("restarts", lambda run: str(len(run.restarts))),
        ("skipped steps", lambda run: last(run, "skipped_steps")),
        ("bad samples", lambda run: last(run, "bad_samples")),
        ("tokens filled", lambda run: last(run, "filled")),
        ("ranks", lambda run: _about(run, "world_size")),
        ("hosts", lambda run: _hosts(run.about)),
        ("device", lambda run: _about(run, "device")),
        ("torch", lambda run: _about(run, "torch")),
        ("code", lambda run: _about(run, "code")),
    ]
    body = table(
        ("", *(_chip(run, color) for run, color in zip(runs, colors(runs), strict=True))),
        [[escape(name), *(cell(run) for run in runs)] for name, cell in rows],
    )
    note = (
        f'<p class="sub">Loss of a source: mean of the last {TAIL} rows. Rates: medians over the '
        "logged windows, the first left out.</p>"
    )
    return Section("Summary", body + note)


def _chip(run: Run, color: str) -> str:
    chip = f'<i class="chip" style="background:{color}"></i>'
    return f'<span class="run">{chip}{escape(run.name)}</span>'


def _about(run: Run, key: str) -> str:
    return escape(str(run.about.get(key) or "–"))


def _of(step: int, total: int) -> str:
    return f"{step} of {total}" if total else str(step)


def _state(run: Run) -> str:
    """How a run stands, as far as its metrics tell."""
    if run.ended_by is not None:
        return f"ended by a fault, {_when(run.ended_by)}"
    if run.finished:
        return f"finished {_when(run.rows[-1])}"
    if not run.lines:
        return "no rows yet"
    end = run.heard
    if end.get("event") == "stop":
        return f"stopped after saving, {_when(end)}"
    return f"{'started' if end.get('event') == 'start' else 'last row'} {_when(end)}"


def _when(row: Row) -> str:
    return f'<span class="whole">{clock(row)}</span>'


def _hosts(place: Row) -> str:
    """All of few, else how many, the first and the last; all of them under the pointer."""
    names = [str(name) for name in place.get("hosts") or []]
    shown = ", ".join(names) or "–"
    if len(names) > FEW:
        shown = f"{len(names)}: {names[0]} … {names[-1]}"
    return f'<span title="{escape(", ".join(names))}">{escape(shown)}</span>'


def _tail(key: str) -> Callable[[Run], str]:
    def mean(run: Run) -> str:
        values = [value for _, value in column(run.rows, key)[-TAIL:]]
        return number(sum(values) / len(values), 4) if values else "–"

    return mean


def learning_section(runs: list[Run]) -> Section:
    return _section("Loss", runs, LEARNING)


def speed_section(runs: list[Run]) -> Section:
    return _section("Speed", runs, SPEED)


def _section(title: str, runs: list[Run], wanted: tuple[Curve, ...]) -> Section:
    if not any(run.rows for run in runs):
        return Section(title, absent("No run has logged a step."))
    return Section(title, f'<div class="columns">{curves(runs, wanted)}</div>')


def starts_section(runs: list[Run]) -> Section:
    """Every start: from and to which step, where, and how the one before ended."""
    title = "Starts"
    if not any(run.of("start") for run in runs):
        return Section(title, absent("No run says when it was started."))
    rows = [
        [
            escape(run.name),
            str(segment.start.get("attempt", count)),
            str(segment.first),
            str(segment.last),
            _when(segment.start),
            "stopped after saving" if segment.ended else "",
            escape(str(segment.start.get("world_size", "–"))),
            _hosts(segment.start),
            escape(str(segment.start.get("job") or "–")),
            f'<span class="reason">{escape(why(segment.start) or "–")}</span>',
        ]
        for run in runs
        for count, segment in enumerate(run.segments)
    ]
    head = ("run", "start", "from step", "to step", "began", "ended", "ranks", "hosts", "job")
    charts = line_chart("steps over time", _progress(runs), "hours since the first start", "step")
    body = table((*head, "how the one before ended"), rows, numbers=(1, 2, 3, 6))
    return Section(title, f'<div class="columns">{charts}</div>{body}')


def _progress(runs: list[Run]) -> list[Series]:
    found: list[Series] = []
    for run, color in zip(runs, colors(runs), strict=True):
        timed = [row for row in run.lines if "time" in row and row.get("event") != "fault"]
        points = [((r["time"] - timed[0]["time"]) / 3600, float(r["step"])) for r in timed]
        found.append(Series(run.label, points, color, run.control or color not in COLORS))
    return found


def config_section(runs: list[Run]) -> Section:
    """Keys in which the runs' configs differ, or those that changed when a run was resumed."""
    title = "Config"
    known = [run for run in runs if run.config]
    body = "".join(absent(f"{run.name} holds no config.") for run in runs if not run.config)
    if len(known) > 1:
        body += differing([run.name for run in known], [run.config for run in known])
    for run in known:
        starts = [start for start in run.of("start") if "config" in start]
        if len(starts) > 1:
            body += f"<h3>{escape(run.name)}: changed at a restart</h3>"
            body += differing(
                [f"from step {start['step']}" for start in starts],
                [part(start, "config") for start in starts],
            )
    for run in known:
        text = json.dumps(run.config, indent=1)
        body += f"<details><summary>{escape(run.name)}: the whole config</summary>"
        body += f"<pre>{escape(text)}</pre></details>"
    return Section(title, body)


def differing(names: list[str], configs: list[Row]) -> str:
    """A table of the keys whose values are not the same in all ``configs``."""
    flat = [dict(_leaves("", config)) for config in configs]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = [
        [escape(key), *(escape(each.get(key, "–")) for each in flat)]
        for key in keys
        if len({each.get(key) for each in flat}) > 1
    ]
    if not rows:
        return "<p>No key differs.</p>"
    return table(("key", *map(escape, names)), rows)


def _leaves(prefix: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, (dict, list)) and value:
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), entry)
    else:
        yield prefix, json.dumps(value)


def picture_section(runs: list[Run]) -> Section:
    """Selected patches of some clips of the runs' sources, where their panels are at hand."""
    title = "Selected patches"
    folders = dict.fromkeys(folder for run in runs for folder in _panel_folders(run))
    found = [sorted(folder.glob("*.png"))[:PICTURES] for folder in folders if folder.is_dir()]
    paths = [path for folder in found for path in folder]
    if not paths:
        looked = ", ".join(map(str, folders)) or "no folder is known"
        return Section(title, absent(f"No panels/*.png of the runs' sources here: {looked}."))
    return Section(title, PANELS + pictures(paths))


def _panel_folders(run: Run) -> list[Path]:
    sources = part(run.config, "data").get("sources")
    shards = [
        Path(str(source["shards"]))
        for source in (sources if isinstance(sources, list) else [])
        if isinstance(source, dict) and source.get("shards")
    ]
    return [run.folder / "panels", *(f / "panels" for s in shards for f in (s, s.parent))]
