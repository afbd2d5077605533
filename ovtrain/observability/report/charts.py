"""Charts as inline SVG strings: lines over steps, horizontal bars with intervals, histograms.

All sizes are SVG user units; the page scales a chart to its column. A line chart carries its points
as JSON, which the page's script (charts.js) draws anew: with values under the pointer, zoom, a
legend that hides lines, logarithmic scale and smoothing.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from ovtrain.observability.report.numbers import flat, number, ticks

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 34
MOST_POINTS, STILL_POINTS = 1200, 300
"""Of a line: those that can be zoomed into, those of the drawing for readers without scripts."""
COLORS = ("#1d4ed8", "#0891b2", "#7c3aed", "#059669", "#db2777", "#4d7c0f")
COLORS += ("#b91c1c", "#111827", "#713f12")
GOLDEN = 0.618
"""Of the circle of hues, from one colour to the next where COLORS are used up: none comes again."""
CONTROL, NEUTRAL = "#d97706", "#94a3b8"


@dataclass(frozen=True)
class Series:
    """Points (x, y) of one line; ``control`` runs are dashed and orange, others are dashed where
    their colour is none of COLORS."""

    name: str
    points: list[tuple[float, float]]
    color: str = COLORS[0]
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at ``x``; ``text`` is shown under the pointer."""

    x: float
    text: str
    color: str = CONTROL


@dataclass(frozen=True)
class Bar:
    """One horizontal bar with its 95 % interval; ``dots`` are the single seeds."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    color: str = COLORS[0]
    dots: list[float] = field(default_factory=list[float])


def color(number: int) -> str:
    """That of line ``number``, counted from 0; no two have the same."""
    if number < len(COLORS):
        return COLORS[number]
    rgb = colorsys.hls_to_rgb(number * GOLDEN % 1, 0.4, 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def thinned(
    points: Sequence[tuple[float, float]], most: int = MOST_POINTS
) -> list[tuple[float, float]]:
    """About ``most`` of them: the first, the last, and of each piece the lowest and the highest, so
    that no peak is lost."""
    if len(points) <= most:
        return list(points)
    stride = -(-2 * len(points) // most)
    kept = {0, len(points) - 1}
    for begin in range(0, len(points), stride):
        piece = range(begin, min(begin + stride, len(points)))
        kept |= {min(piece, key=lambda i: points[i][1]), max(piece, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


@dataclass(frozen=True)
class _Frame:
    """Plot area of a chart in data units; x() and y() map to SVG units."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        share = (value - self.x0) / ((self.x1 - self.x0) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y0) / ((self.y1 - self.y0) or 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str) -> str:
        parts: list[str] = []
        for value in ticks(self.y0, self.y1):
            y = self.y(value)
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">'
                f"{number(value, 4)}</text>"
            )
        for value in ticks(self.x0, self.x1, 8):
            parts.append(
                f'<text class="tick" x="{self.x(value):.1f}" y="{HEIGHT - BOTTOM + 15}" '
                f'text-anchor="middle">{number(value, 4)}</text>'
            )
        floor = HEIGHT - BOTTOM
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>'
            f'<text class="axis-label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" '
            f'text-anchor="middle">{escape(x_label)}</text>'
            f'<text class="axis-label" transform="translate(11 {(TOP + floor) / 2}) rotate(-90)" '
            f'text-anchor="middle">{escape(y_label)}</text>'
        )
        return "".join(parts)


def _svg(body: str, height: float = HEIGHT, extra: str = "", label: str = "") -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}" {extra}>'
        f"{body}</svg>"
    )


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    link: str = "",
) -> str:
    """A figure with legend; series without points are left out. Charts of one ``link`` are zoomed
    together and can be smoothed."""
    drawn = [Series(s.name, thinned(s.points), s.color, s.dashed) for s in series if s.points]
    if not drawn:
        empty = '<p class="absent">no points</p>'
        return f"<figure><figcaption>{escape(title)}</figcaption>{empty}</figure>"
    data = {
        "x": x_label,
        "y": y_label,
        "link": link,
        "series": [
            {"name": s.name, "color": s.color, "dashed": s.dashed, "points": _rounded(s.points)}
            for s in drawn
        ],
        "marks": [{"x": mark.x, "text": mark.text, "color": mark.color} for mark in marks],
    }
    script = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f"{_svg(_still(drawn, x_label, y_label), label=title)}{_legend(drawn)}"
        f'<script type="application/json">{script}</script></figure>'
    )


def _rounded(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(float(f"{x:.10g}"), float(f"{y:.6g}")) for x, y in points]


def _still(drawn: Sequence[Series], x_label: str, y_label: str) -> str:
    """The drawing for readers without scripts."""
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points]
    low, high = min(ys), max(ys)
    pad = max(abs(high) * 0.1, 1e-3) if flat(low, high) else (high - low) * 0.06
    frame = _Frame(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, low - pad, high + pad)
    body = frame.axes(x_label, y_label)
    for s in drawn:
        points = thinned(s.points, STILL_POINTS)
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if s.dashed else ""
        body += f'<polyline class="line" points="{path}" stroke="{s.color}"{dash}/>'
        if len(points) == 1:
            x, y = points[0]
            body += f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" fill="{s.color}"/>'
    return body


def _legend(series: Sequence[Series]) -> str:
    """Names with their line samples, in the order of the data; a click hides a line."""
    items = "".join(
        f'<button type="button" aria-pressed="true"><i style="border-top:2px '
        f'{"dashed" if s.dashed else "solid"} {s.color}"></i>{escape(s.name)}</button>'
        for s in series
    )
    return f'<div class="legend">{items}</div>'


def bar_chart(title: str, bars: Sequence[Bar], reference: tuple[float, str] | None = None) -> str:
    """Horizontal bars from 0 to 1 with interval whiskers, seed dots and a dashed reference line."""
    row, left, right, top = 24, 210, 46, 8
    floor = top + row * len(bars)
    top_value = max([1e-9, *(max(b.value, b.high or 0) for b in bars)])
    span = 1.0 if top_value > 0.45 else top_value * 1.15

    def x(value: float) -> float:
        return left + value / span * (WIDTH - left - right)

    body = ""
    for value in ticks(0, span, 5):
        body += (
            f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{floor}"/>'
            f'<text class="tick" x="{x(value):.1f}" y="{floor + 14}" text-anchor="middle">'
            f"{number(value)}</text>"
        )
    for i, bar in enumerate(bars):
        body += _bar(bar, top + row * i, row, x, left)
    if reference is not None:
        at = x(reference[0])
        body += (
            f'<line class="reference" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 4}" y2="{floor}"/>'
            f'<text class="tick" x="{at:.1f}" y="{floor + 26}" text-anchor="middle">'
            f"{escape(reference[1])}</text>"
        )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f"{_svg(body, floor + 32, label=title)}</figure>"
    )


def _bar(bar: Bar, y: float, row: float, x: Callable[[float], float], left: float) -> str:
    middle = y + row / 2
    text = (
        f'<text class="bar-label" x="{left - 8}" y="{middle + 4:g}" text-anchor="end">'
        f"{escape(bar.label)}</text>"
        f'<rect x="{left}" y="{y + 5:g}" width="{max(x(bar.value) - left, 0.5):.1f}" '
        f'height="{row - 10:g}" fill="{bar.color}" opacity=".82" rx="1.5">'
        f"<title>{escape(bar.label)}: {bar.value:.3f}</title></rect>"
    )
    end = bar.value
    if bar.low is not None and bar.high is not None:
        end = max(end, bar.high)
        text += (
            f'<path class="whisker" d="M{x(bar.low):.1f} {middle:g}H{x(bar.high):.1f}'
            f'M{x(bar.low):.1f} {middle - 4:g}v8M{x(bar.high):.1f} {middle - 4:g}v8"/>'
        )
    for dot in bar.dots:
        end = max(end, dot)
        text += f'<circle class="dot" cx="{x(dot):.1f}" cy="{middle:g}" r="2.4"/>'
    return text + (
        f'<text class="bar-value" x="{x(end) + 6:.1f}" y="{middle + 4:g}">{bar.value:.3f}</text>'
    )


def histogram(title: str, edges: Sequence[float], counts: Sequence[float], x_label: str) -> str:
    """Bars of equal width, one per bin, labelled by their edges; hover gives range and count."""
    high = max([1.0, *counts])
    frame = _Frame(0, max(len(counts), 1), 0, high * 1.05)
    body = ""
    for value in ticks(0, high, 4):
        y = frame.y(value)
        body += (
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">'
            f"{number(value)}</text>"
        )
    stride = -(-len(counts) // 12) or 1
    for i, count in enumerate(counts):
        x, y = frame.x(i), frame.y(count)
        body += (
            f'<rect x="{x + 1:.1f}" y="{y:.1f}" width="{frame.x(i + 1) - x - 2:.1f}" '
            f'height="{frame.y(0) - y:.1f}" fill="{COLORS[0]}" opacity=".8">'
            f"<title>{number(edges[i])} to {number(edges[i + 1])}: {number(count)}</title></rect>"
        )
        if i % stride == 0:
            body += (
                f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
                f"{number(edges[i])}</text>"
            )
    floor = HEIGHT - BOTTOM
    body += (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>'
        f'<text class="axis-label" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    return f"<figure><figcaption>{escape(title)}</figcaption>{_svg(body, label=title)}</figure>"
