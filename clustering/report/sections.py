"""Sections of numbers: sizes, distances, convergence, agreement, classes, settings; as HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from clustering.report.folder import Folder
from ovtrain.observability.history import Row, column
from ovtrain.observability.report.charts import COLORS, Series, histogram, line_chart
from ovtrain.observability.report.numbers import number
from ovtrain.observability.report.page import Section, absent, table

LINES = 12
"""Restarts drawn in one chart."""
AGREEMENT = {
    "nmi": "NMI of nearest labels",
    "ari": "adjusted Rand index",
    "shared": "pairs that share a label share one in both",
    "same": "same nearest label",
    "top": "same labels, any order",
}


def text_of(value: Any) -> str:
    """A number, short, or a dash."""
    return number(value) if isinstance(value, (int, float)) else "–"


def part(row: Row, name: str) -> Row:
    """An object inside an object, empty where it is none."""
    found = row.get(name)
    return found if isinstance(found, dict) else {}


def _percents(values: Row) -> list[str]:
    """In their order, which JSON files that sort their keys lose."""
    return sorted(part(values, "quantiles"), key=float)


def _bins(title: str, bins: Row, x_label: str) -> str:
    edges, counts = bins.get("edges", []), bins.get("counts", [])
    if not counts or len(edges) != len(counts) + 1:
        return absent(f"No histogram of {title} in quality.json.")
    return histogram(title, edges, counts, x_label)


def _facts(facts: Mapping[str, Any]) -> str:
    shown = [text_of(value) for value in facts.values()]
    return table(list(facts), [shown], numbers=range(len(shown)))


def sizes(quality: Row) -> Section:
    """How many samples each center is nearest to."""
    title = "Cluster sizes"
    size = part(quality, "size")
    if not size:
        return Section(title, absent("No quality.json here that tells the sizes."))
    facts = {"clusters": quality.get("clusters"), "empty": quality.get("empty")}
    facts |= {"smallest": size.get("min"), "mean": size.get("mean"), "largest": size.get("max")}
    facts |= {f"{p} %": size["quantiles"][p] for p in _percents(size)}
    facts |= {"Gini": size.get("gini"), "in the largest 1 %": size.get("largest_share")}
    text = (
        '<p class="sub">Samples by nearest center. Gini: 0 where all clusters are of one size. '
        "Last: the share of all samples that the largest 1 % of clusters hold.</p>"
    )
    chart = _bins("clusters by size", part(quality, "size_histogram"), "samples, from")
    return Section(title, text + _facts(facts) + f'<div class="columns dense">{chart}</div>')


def distances(quality: Row) -> Section:
    """Within-cluster distances, and margins between first and last label."""
    title = "Distances and margins"
    distance, margin = part(quality, "distance"), part(quality, "margin")
    if not distance and not margin:
        return Section(title, absent("No quality.json here that tells distances."))
    rows = [
        ["samples", distance],
        ["clusters", part(quality, "cluster_distance")],
    ]
    percents = _percents(distance)
    body = table(
        ["distances of", "mean", *(f"{p} %" for p in percents)],
        [
            [
                escape(name),
                text_of(quality.get("mean_distance")) if values is distance else "–",
                *(text_of(part(values, "quantiles").get(p)) for p in percents),
            ]
            for name, values in rows
        ],
        numbers=range(1, len(percents) + 2),
    )
    squared, mean = text_of(distance.get("mean_squared")), text_of(margin.get("mean"))
    body += (
        '<p class="sub">Of samples: to their nearest center. Of clusters: the root mean square of '
        f"their samples' distances. Mean squared distance {squared}; mean margin {mean}. Margin: "
        "1 - d_1 / d_K of a sample's first and last label; 0 where all its labels are equally "
        "near.</p>"
    )
    charts = _bins("samples by distance to the nearest center", distance, "distance, from")
    charts += _bins("samples by margin", margin, "1 - d_1 / d_K, from")
    return Section(title, f'{body}<div class="columns dense">{charts}</div>')


def convergence(rows: Sequence[Row]) -> Section:
    """Objective and moves per iteration, one line per restart."""
    title = "Convergence"
    if not rows:
        return Section(title, absent("No convergence.jsonl here: no centers were made."))
    runs: dict[str, list[Row]] = {}
    for row in rows:
        stage = _stage([row])
        name = f"{stage}restart\N{NO-BREAK SPACE}{row.get('restart', 0)}"
        runs.setdefault(name, []).append({**row, "step": row.get("iteration", 0)})
    drawn = list(runs.items())[:LINES]
    charts = "".join(
        line_chart(
            label,
            [
                Series(name, column(found, key), COLORS[i % len(COLORS)], i >= len(COLORS))
                for i, (name, found) in enumerate(drawn)
            ],
            "iteration",
            axis,
        )
        for key, label, axis in (
            ("mean_squared", "mean squared distance", "squared distance"),
            ("moved", "share of samples that changed their center", "share"),
        )
    )
    ends = {name: found[-1].get("objective") for name, found in runs.items() if not _stage(found)}
    known = {name: end for name, end in ends.items() if isinstance(end, (int, float))}
    best = min(known, key=lambda name: known[name]) if len(known) > 1 else ""
    body = table(
        ("", "passes", "objective", "empty", "repaired", "split", "last moved", "s/pass"),
        [_restart(name, found) for name, found in runs.items()],
        numbers=range(1, 8),
        strong=[i for i, name in enumerate(runs) if name == best],
    )
    left = len(runs) - len(drawn)
    more = f'<p class="sub">{left} more restarts are not drawn.</p>' if left else ""
    more += '<p class="sub">Tinted: the restart whose centers were kept.</p>' if best else ""
    return Section(title, f'<div class="columns dense">{charts}</div>{more}{body}')


def _stage(rows: Sequence[Row]) -> str:
    """Of a hierarchical run, before its last pass over all centers."""
    stage = rows[-1].get("stage")
    return f"{stage}, " if stage else ""


def _restart(name: str, rows: Sequence[Row]) -> list[str]:
    last = rows[-1]

    def total(key: str) -> float:
        return sum(value for _, value in column(list(rows), key))

    return [
        escape(name),
        str(len(rows)),
        text_of(last.get("objective")),
        *(text_of(total(key)) for key in ("empty", "repaired", "split")),
        text_of(last.get("moved")),
        text_of(total("seconds") / len(rows)),
    ]


def agreement(found: Mapping[str, Row]) -> Section:
    """Labels of this run against each other run's, chance beside every number."""
    title = "Agreement with other runs"
    if not found:
        text = "No other run was named (ovtrain cluster report OUT OTHER)."
        return Section(title, absent(text))
    names = [name for name in AGREEMENT if any(row.get(name) is not None for row in found.values())]
    head = ["run", "samples", *(AGREEMENT[name] for name in names)]
    rows = [
        [escape(run), text_of(row.get("samples")), *(_beside_chance(row, name) for name in names)]
        for run, row in found.items()
    ]
    text = (
        '<p class="sub">In parentheses: the same with one side permuted, which is chance. Numbers '
        "of clusters mean nothing across runs, so they are not compared, unless both used the same "
        "centers.</p>"
    )
    return Section(title, text + table(head, rows, numbers=range(1, len(head))))


def _beside_chance(row: Row, name: str) -> str:
    value, chance = row.get(name), row.get(f"{name}_permuted")
    if not isinstance(value, (int, float)) or not isinstance(chance, (int, float)):
        return "–"
    return f'{value:.3f} <span class="sub">({chance:.3f})</span>'


def classes(found: Row | None, why: str) -> Section:
    """Purity and NMI where true classes are known; ``why`` they could not be looked up."""
    title = "True classes"
    if found is None:
        text = f"Not looked up. {why}" if why else "No classes file was named (--classes)."
        return Section(title, absent(text))
    row = [text_of(found["samples"]), _beside_chance(found, "purity"), _beside_chance(found, "nmi")]
    text = (
        '<p class="sub">Purity: share of samples whose class is the commonest of their nearest '
        "cluster. In parentheses: with the classes permuted between files. Teachers never see "
        "classes.</p>"
    )
    return Section(title, text + table(("samples", "purity", "NMI"), [row], numbers=range(3)))


def compared(folders: Sequence[Folder]) -> Section:
    """Figures of all runs side by side, then the settings that differ."""

    def figures(quality: Row) -> dict[str, Any]:
        size, distance = part(quality, "size"), part(quality, "distance")
        return {
            "samples": quality.get("samples"),
            "without labels": quality.get("without_labels"),
            "clusters": quality.get("clusters"),
            "labels per sample": quality.get("top"),
            "empty": quality.get("empty"),
            "median size": size.get("median"),
            "largest": size.get("max"),
            "Gini": size.get("gini"),
            "mean distance": quality.get("mean_distance"),
            "mean squared distance": distance.get("mean_squared"),
            "mean margin": part(quality, "margin").get("mean"),
        }

    columns = [figures(folder.quality) for folder in folders]
    rows = [[escape(name), *(text_of(c[name]) for c in columns)] for name in columns[0]]
    configs = [folder.config for folder in folders]
    for key in sorted({key for config in configs for key in config}):
        values = [config.get(key) for config in configs]
        if any(value != values[0] for value in values):
            rows.append([f"<code>{escape(key)}</code>", *(escape(str(value)) for value in values)])
    head = ["", *(escape(folder.name) for folder in folders)]
    return Section("Side by side", table(head, rows, numbers=range(1, len(head))))


def setup(own: Folder) -> Section:
    """How labels were searched, which samples have none, the settings."""
    body = ""
    search = part(own.quality, "search")
    if search:
        cells = [[escape(str(k)), escape(_plain(v))] for k, v in search.items()]
        body += "<h3>Search</h3>" + table(("", ""), cells)
    missing = own.quality.get("without_labels")
    if isinstance(missing, int):
        told = f"{missing:,} samples have no labels; skipped.jsonl says why."
        body += f"<p>{told if missing else 'Every sample has labels.'}</p>"
    if not own.settings:
        return Section("Setup", body + absent("No settings.json here."))
    text = escape(json.dumps(own.settings, indent=2))
    return Section("Setup", f"{body}<pre>{text}</pre>")


def _plain(value: Any) -> str:
    return number(value) if isinstance(value, (int, float)) else str(value)
