"""What the encoder learned: probe rows with intervals and chance, ranking against shuffled labels.

Reads ``probe/result.json``: {"classes", "chance", "rows": [{"probe", "encoder", "view", "tokens",
"scores" (per seed), "mean", "low", "high" (95 %), "note"}], "ranking": [{"encoder", "auc",
"percentile", "samples"}], "notes", "config_hash"} or {"skipped": reason}.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from ovtrain.observability.history import Row, read_object
from ovtrain.observability.report.charts import COLORS, CONTROL, NEUTRAL, Bar, bar_chart
from ovtrain.observability.report.numbers import number
from ovtrain.observability.report.page import Section, absent, table

RESULT = Path("probe") / "result.json"


def section(out: Path) -> Section:
    """Probe table and charts, then the ranking table."""
    title = "Learning"
    result = read_object(out / RESULT)
    if result is None:
        return Section(title, absent(f"No {RESULT} here: the probe has not run."))
    if "skipped" in result:
        return Section(title, absent(f"Probe skipped: {result['skipped']}"))
    return Section(title, _probe(result) + _ranking(result.get("ranking", [])))


def _probe(result: Row) -> str:
    rows: list[Row] = result.get("rows", [])
    if not rows:
        return absent("The probe's result holds no rows.")
    chance = result.get("chance")
    classes = result.get("classes", [])
    lead = f"<p>Held-out accuracy of probes on the frozen encoder, {len(classes)} classes"
    lead += f", chance {chance:.3f}." if isinstance(chance, (int, float)) else "."
    lead += " Bars show the mean, whiskers the 95 % interval, circles the single seeds.</p>"
    charts = "".join(
        _chart(kind, [row for row in rows if row.get("probe") == kind], chance)
        for kind in dict.fromkeys(str(row.get("probe")) for row in rows)
    )
    return f'{lead}<div class="columns">{charts}</div>{_table(rows)}{_classes(classes)}'


def _chart(kind: str, rows: list[Row], chance: Any) -> str:
    bars = [
        Bar(
            f"{row.get('encoder')} · {row.get('view')}",
            float(row["mean"]),
            row.get("low"),
            row.get("high"),
            color_of(str(row.get("encoder"))),
            [float(score) for score in row.get("scores", [])],
        )
        for row in rows
        if isinstance(row.get("mean"), (int, float))
    ]
    reference = (float(chance), f"chance {chance:.3f}") if chance is not None else None
    return bar_chart(f"{kind} probe", bars, reference)


def color_of(encoder: str) -> str:
    """Trained blue, shuffled-label control orange, untrained grey."""
    if "shuffled" in encoder:
        return CONTROL
    return NEUTRAL if "untrained" in encoder else COLORS[0]


def _table(rows: list[Row]) -> str:
    noted = any(row.get("note") for row in rows)
    cells = [
        [
            escape(str(row.get("probe", ""))),
            escape(str(row.get("encoder", ""))),
            escape(str(row.get("view", ""))),
            escape(str(row.get("tokens", ""))),
            _fixed(row.get("mean")),
            f"{_fixed(row.get('low'))} – {_fixed(row.get('high'))}",
            " ".join(_fixed(score) for score in row.get("scores", [])),
            *([escape(str(row.get("note", "")))] if noted else []),
        ]
        for row in rows
    ]
    head = ("probe", "encoder", "view", "tokens", "accuracy", "95 % interval", "seeds")
    head += ("note",) if noted else ()
    strong = [i for i, row in enumerate(rows) if row.get("encoder") == "trained"]
    return table(head, cells, numbers=(3, 4, 5), strong=strong)


def _fixed(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "–"


def _classes(names: list[str]) -> str:
    if not names:
        return ""
    return f'<p class="sub">Classes: {escape(", ".join(map(str, names)))}</p>'


def _ranking(rows: list[Row]) -> str:
    head = "<h3>Do the class centers rank held-out clips?</h3>"
    if not rows:
        return head + absent("The probe's result holds no ranking.")
    text = (
        "<p>For held-out clips: does an encoder place a clip's own labels above other centers? "
        "AUC 0.5 and rank percentile 50 are chance.</p>"
    )
    cells = [
        [
            escape(str(row.get("encoder", ""))),
            _fixed(row.get("auc")),
            _percent(row.get("percentile")),
            number(row["samples"]) if isinstance(row.get("samples"), (int, float)) else "–",
        ]
        for row in rows
    ]
    names = ("encoder", "AUC", "mean rank percentile", "samples")
    return head + text + table(names, cells, numbers=(1, 2, 3))


def _percent(value: Any) -> str:
    """The percentile as written, 0..1 shares shown as 0..100."""
    if not isinstance(value, (int, float)):
        return "–"
    return f"{100 * value:.1f}" if value <= 1 else f"{value:.1f}"
