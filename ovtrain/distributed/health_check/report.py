"""The report of a health check: a file for the launcher, lines for the log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median_high
from typing import Any

from ovtrain.distributed.health_check.verdict import Finding, Link, RankRow

VERSION = 1


def report(
    rows: Sequence[RankRow],
    links: Sequence[Link],
    findings: Sequence[Finding],
    bad_nodes: Sequence[str],
) -> dict[str, Any]:
    """See docs/health_check.md."""
    bad = {finding.rank for finding in findings}
    return {
        "version": VERSION,
        "sound": not findings,
        "bad_nodes": list(bad_nodes),
        "problems": [finding.text for finding in findings],
        "measured": sorted({name for row in rows for name in row.values} | {x.kind for x in links}),
        "ranks": [
            {**asdict(row), "verdict": "bad" if row.rank in bad else "no fault found"}
            for row in rows
        ],
        "links": [asdict(link) for link in links],
    }


def error_line(findings: Sequence[Finding], out: Path) -> str:
    more = f"; {len(findings) - 1} more findings above" if findings[1:] else ""
    return f"error: health check: {findings[0].text}{more}; all numbers: {out}"


def report_lines(rows: Sequence[RankRow], links: Sequence[Link]) -> list[str]:
    """What was measured, and nothing else: median, least and most of each number."""
    devices = sorted({row.device for row in rows if row.device})
    hosts = len({row.host for row in rows})
    lines = [f"health check of {len(rows)} ranks on {hosts} nodes ({', '.join(devices)})"]
    for name in dict.fromkeys(name for row in rows for name in row.values):
        held = [(row.values[name], row.place) for row in rows if name in row.values]
        lines.append(_line(name, held))
    for kind in dict.fromkeys(link.kind for link in links):
        ends = [(x.gbs, f"{x.source} to {x.target}") for x in links if x.kind == kind]
        lines.append(_line(f"{kind}, GB/s", ends))
    return lines


def _line(name: str, held: Iterable[tuple[float, str]]) -> str:
    ordered = sorted(held)
    (least, where), (most, _) = ordered[0], ordered[-1]
    middle = median_high(value for value, _ in ordered)
    return (
        f"{name:24} {len(ordered)} x, median {middle:.4g}, least {least:.4g} ({where}), "
        f"most {most:.4g}"
    )
