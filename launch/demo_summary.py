"""What a demo prints at its end: probe rows, ranking, timings, skipped files, the report's path."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.stages import Record
from ovtrain.observability.history import read_object, read_rows
from ovtrain.schema.atomic import atomic_open

SKIPPED = "skipped.jsonl"
SHOWN = 20
WIDTH = 120
"""Columns of a log or pipe, where rich would assume 80 and cut the table."""


def merge_skipped(out: Path) -> list[dict[str, Any]]:
    """All stages' skipped files in one ``OUT/skipped.jsonl``; {"file", "reason", "stage"}."""
    rows: list[dict[str, Any]] = []
    for path in sorted(out.glob(f"*/*/{SKIPPED}")):
        stage = str(path.parent.relative_to(out))
        rows += [{**row, "stage": stage} for row in read_rows(path)]
    with atomic_open(out / SKIPPED, "w") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def print_summary(out: Path, records: Sequence[Record], notes: Sequence[str], report: Path) -> None:
    """The tables, then the sentences."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    result = read_object(out / "probe" / "result.json") or {}

    def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for name in head:
            table.add_column(name, no_wrap=True)
        for row in rows:
            table.add_row(*row)
        if rows:
            console.print(table)

    show("Probe (held-out accuracy)", PROBE_HEAD, probe_rows(result))
    show("Ranking of own labels", ("encoder", "AUC", "percentile", "samples"), ranking_rows(result))
    show(
        "Stages",
        ("stage", "status", "seconds"),
        [(record.name, record.status, f"{record.seconds:.1f}") for record in records],
    )
    for line in [*notes, *skipped_lines(out)]:
        console.print(line, highlight=False, markup=False)
    console.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)


PROBE_HEAD = ("probe", "encoder", "view", "tokens", "accuracy", "95 %", "seeds")


def probe_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = [
        (
            str(row.get("probe")),
            str(row.get("encoder")),
            str(row.get("view")),
            str(row.get("tokens")),
            _fixed(row.get("mean")),
            f"{_fixed(row.get('low'))}-{_fixed(row.get('high'))}",
            " ".join(_fixed(score) for score in row.get("scores", [])),
        )
        for row in result.get("rows", [])
    ]
    chance = result.get("chance")
    return rows + ([("", "chance", "", "", _fixed(chance), "", "")] if rows and chance else [])


def ranking_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            str(row.get("encoder")),
            _fixed(row.get("auc")),
            _fixed(row.get("percentile")),
            str(row.get("samples")),
        )
        for row in result.get("ranking", [])
    ]


def _fixed(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "-"


def skipped_lines(out: Path) -> list[str]:
    """Counts by reason without its details in parentheses, then the first names."""
    rows = read_rows(out / SKIPPED)
    if not rows:
        return ["Skipped files: none."]
    reasons = Counter(str(row.get("reason")).split(" (")[0] for row in rows)
    lines = [f"Skipped files: {len(rows)}, all in {out / SKIPPED}"]
    lines += [f"  {count} x {reason}" for reason, count in reasons.most_common(SHOWN)]
    lines += [f"    {row.get('file')}: {row.get('reason')}" for row in rows[:SHOWN]]
    return lines
