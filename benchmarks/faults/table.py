"""The campaign's table, in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from .fault import BAD, OUTCOMES

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
    """One line per kind of fault, in the order in which they were met; a last one of them all."""
    names = list(dict.fromkeys(row["fault"] for row in rows))
    head = ["fault", "runs", *OUTCOMES, "repeated", "met while", "steps lost", "seconds to recover"]
    lines = [head, ["---"] * len(head)]
    lines += [_line(name, [row for row in rows if row["fault"] == name]) for name in names]
    lines.append(_line(f"**{len(names)} kinds**", rows))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _line(name: str, rows: Sequence[Row]) -> list[str]:
    counts = [sum(row["outcome"] == outcome for row in rows) for outcome in OUTCOMES]
    met = [row["met"] for row in rows]
    shown = [f"{met.count(when)} {when}" for when in dict.fromkeys(met)]
    lost = [row["lost"] for row in rows]
    seconds = [row["recovered_s"] for row in rows if row["recovered_s"] is not None]
    return [
        name,
        str(len(rows)),
        *(str(count or "") for count in [*counts, sum(row["repeats"] for row in rows)]),
        ", ".join(shown),
        _spread(lost, "d"),
        _spread(seconds, ".1f"),
    ]


def _spread(values: Sequence[float], form: str) -> str:
    """Median, and the most."""
    if not values:
        return ""
    middle = median(values)
    return f"{middle:.1f} (most {max(values):{form}})"


def failed(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["outcome"] in BAD]
