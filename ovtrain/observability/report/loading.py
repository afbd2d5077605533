"""Loading section of the report: what a step waited for, where samples' time went, how many batches
were ready, and why samples were not used.
"""

from __future__ import annotations

from html import escape

from ovtrain.observability.history import Row, column, read_rows
from ovtrain.observability.report.charts import COLORS, Series, line_chart, number
from ovtrain.observability.report.page import Section, absent, table
from ovtrain.observability.report.training import Run

STAGE = "data_ms/"
WAITS = {"data_wait_ms": "mean", "data_wait_ms_max": "longest"}
SHOWN = 50


def loading_section(runs: list[Run]) -> Section:
    title = "Loading"
    logged = [run for run in runs if column(run.rows, "batches_ready")]
    if not logged:
        return Section(title, absent("No run has logged how its samples were loaded."))
    body = (
        '<p class="sub">Of rank 0. Waiting: time that a step waited for its batch. Stages: work '
        "per sample, of one worker. Ready: fewest batches that were waiting, at most "
        "data.prefetch.</p>"
    )
    for run in logged:
        body += f'<h3>{escape(run.name)}</h3><div class="columns dense">{_charts(run)}</div>'
    return Section(title, body + _bad(runs))


def _charts(run: Run) -> str:
    stages = sorted({key for row in run.rows for key in row if key.startswith(STAGE)})
    waits = [_line(run, key, name, n) for n, (key, name) in enumerate(WAITS.items())]
    work = [_line(run, key, key.removeprefix(STAGE), n) for n, key in enumerate(stages)]
    ready = [_line(run, "batches_ready", "batches", 0)]
    return (
        line_chart("waiting for data", waits, "step", "ms per step")
        + line_chart("stages", work, "step", "ms per sample")
        + line_chart("batches ready", ready, "step", "batches")
    )


def _line(run: Run, key: str, name: str, color: int) -> Series:
    return Series(name, column(run.rows, key), COLORS[color % len(COLORS)])


def _bad(runs: list[Run]) -> str:
    """Unusable samples by reason, and the first of each run's quarantine."""
    rows = [
        [escape(run.name), escape(reason), number(count, 4)]
        for run in runs
        for reason, count in sorted(reasons(run.rows).items(), key=lambda pair: -pair[1])
    ]
    if not rows:
        return "<p>Every sample could be used.</p>"
    body = "<h3>Samples that could not be used</h3>"
    body += table(("run", "reason", "samples"), rows, numbers=(2,))
    return body + "".join(map(_quarantine, runs))


def _quarantine(run: Run) -> str:
    found = [
        row for path in sorted(run.folder.glob("quarantine-*.jsonl")) for row in read_rows(path)
    ]
    if not found:
        return ""
    keys = ("step", "source", "name", "reason")
    rows = [[escape(str(row.get(key, ""))) for key in keys] for row in found[:SHOWN]]
    left = f", the first {SHOWN} of {len(found)}" if len(found) > SHOWN else ""
    summary = f"<summary>Quarantine of {escape(run.name)}{left}</summary>"
    return f"<details>{summary}{table(keys, rows, numbers=(0,))}</details>"


def reasons(rows: list[Row]) -> dict[str, int]:
    """Unusable samples so far by the category of their reason."""
    found = rows[-1].get("bad_reasons") if rows else None
    if not isinstance(found, dict):
        return {}
    return {str(name): int(count) for name, count in found.items() if isinstance(count, int)}
