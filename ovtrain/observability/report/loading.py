"""Loading section of the report: what a step waited for, where samples' time went, how many batches
were ready, and why samples were not used.
"""

from __future__ import annotations

from html import escape

from ovtrain.observability.history import column
from ovtrain.observability.report.charts import Series, color, line_chart
from ovtrain.observability.report.page import Section, absent
from ovtrain.observability.report.training import marks
from ovtrain.observability.runs import Run

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
    return Section(title, body)


def _charts(run: Run) -> str:
    stages = sorted({key for row in run.rows for key in row if key.startswith(STAGE)})
    waits = [_line(run, key, name, n) for n, (key, name) in enumerate(WAITS.items())]
    work = [_line(run, key, key.removeprefix(STAGE), n) for n, key in enumerate(stages)]
    ready = [_line(run, "batches_ready", "batches", 0)]
    return (
        line_chart("waiting for data", waits, "step", "ms per step", marks([run]))
        + line_chart("stages", work, "step", "ms per sample", marks([run]))
        + line_chart("batches ready", ready, "step", "batches", marks([run]))
    )


def _line(run: Run, key: str, name: str, place: int) -> Series:
    return Series(name, column(run.rows, key), color(place))
