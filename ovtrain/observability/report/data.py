"""Data side of the report: four-panel pictures, label statistics, skipped files, stage timings."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ovtrain.observability.history import Row, read_object, read_rows
from ovtrain.observability.report.charts import histogram
from ovtrain.observability.report.numbers import number
from ovtrain.observability.report.page import Section, absent, table

MOST_PICTURES, LARGEST = 4, 4 * 2**20
"""Pictures that are embedded, and the largest one in bytes."""
PANELS = (
    '<p class="sub">Per clip: dense frames, uniformly sampled frames, energy, and the selected '
    "patches (the rest greyed).</p>"
)
SHOWN_SKIPS = 200
EXACT = ("hevc-bitstream", "hevc-transcode")
ORIGINS = {
    "hevc-bitstream": "exact: motion and residuals of the file's own HEVC bitstream",
    "hevc-transcode": "exact: motion and residuals of the HEVC bitstream the clip was encoded to",
    "h264-export": "motion of the file's own H.264 bitstream, residuals estimated",
    "pixel-estimate": "estimated: block matching and differences of decoded frames",
}
IMAGE_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


def pictures(paths: Sequence[Path]) -> str:
    """The first few of ``paths``, embedded; none above LARGEST bytes."""
    chosen = [path for path in paths if path.stat().st_size <= LARGEST][:MOST_PICTURES]
    left = len(paths) - len(chosen)
    more = f'<p class="sub">{left} more in the panels folders.</p>' if left else ""
    return f'<div class="pictures columns">{"".join(map(_picture, chosen))}</div>{more}'


def picture_section(out: Path) -> Section:
    """The paper's four-panel pages of a few clips, embedded."""
    title = "Clips and selected patches"
    paths = sorted(out.glob("**/panels/*.png"), key=lambda path: ("heldout" in str(path), path))
    if not paths:
        return Section(title, absent("No panels/*.png here: preparation has drawn no pictures."))
    return Section(title, PANELS + _origins(out) + pictures(paths))


def _origins(out: Path) -> str:
    """What the patches were selected by, over every summary.json of a preparation."""
    counts: Counter[str] = Counter()
    for path in out.glob("**/summary.json"):
        origins = (read_object(path) or {}).get("origins")
        if isinstance(origins, dict):
            counts.update({str(name): int(count) for name, count in origins.items()})
    if not counts:
        return absent("No summary.json here says which codec signals the patches were selected by.")
    rows = [
        [escape(name), str(count), escape(ORIGINS.get(name, "unknown to this version"))]
        for name, count in counts.most_common()
    ]
    exact, total = sum(counts[name] for name in EXACT), counts.total()
    if exact == total:
        sentence = f"The patches of all {total} clips were selected by exact codec signals."
    else:
        sentence = (
            f"The patches of {exact} of {total} clips were selected by exact codec signals, the "
            "others by estimates."
        )
    return f"<p>{sentence}</p>{table(('signals', 'clips', 'what they are'), rows, numbers=(1,))}"


def _picture(path: Path) -> str:
    raw = path.read_bytes()
    kind = next((kind for magic, kind in IMAGE_TYPES.items() if raw.startswith(magic)), None)
    if kind is None:
        return absent(f"{path.name} is not a PNG or JPEG picture.")
    source = f"data:{kind};base64,{b64encode(raw).decode()}"
    return (
        f'<figure><figcaption>{escape(path.stem)}</figcaption><img src="{source}" '
        f'alt="four-panel page of {escape(path.stem)}"></figure>'
    )


def label_section(out: Path) -> Section:
    """One block per quality.json: counts, cluster sizes, margins of the last label."""
    title = "Labels"
    found = [
        (path, quality)
        for path in sorted(out.glob("**/quality.json"))
        if (quality := read_object(path)) is not None
    ]
    if not found:
        return Section(title, absent("No quality.json here: nothing has been clustered."))
    return Section(title, "".join(_labels(path.parent, out, quality) for path, quality in found))


def _labels(folder: Path, out: Path, quality: Row) -> str:
    size = quality.get("size", {})
    margin = quality.get("margin", {})
    facts = [
        ("samples", quality.get("samples")),
        ("clusters", quality.get("clusters")),
        ("empty", quality.get("empty")),
        ("labels per sample", quality.get("top")),
        ("smallest", size.get("min")),
        ("median size", size.get("median")),
        ("largest", size.get("max")),
        ("mean distance", quality.get("mean_distance")),
        ("mean margin", margin.get("mean")),
    ]
    row = [number(value) if isinstance(value, (int, float)) else "–" for _, value in facts]
    charts = _histogram("samples per cluster", quality.get("size_histogram"), "cluster size from")
    charts += _histogram("margin between first and last label", margin, "1 - d_first / d_last")
    head = [key for key, _ in facts]
    body = f"<h3>{escape(folder.name)}</h3>{table(head, [row], numbers=range(len(head)))}"
    page = folder / "report.html"
    if folder != out and page.is_file():  # named, not linked: the report may lie elsewhere by then
        where = escape(str(page.relative_to(out)))
        body += f'<p class="sub">Samples of centers: <code>{where}</code></p>'
    return f'{body}<div class="columns dense">{charts}</div>'


def _histogram(title: str, bins: Any, x_label: str) -> str:
    if not isinstance(bins, dict) or len(bins.get("edges", ())) != len(bins.get("counts", ())) + 1:
        return absent(f"No histogram of {title}.")
    return histogram(title, bins["edges"], bins["counts"], x_label)


def skipped_section(out: Path) -> Section:
    """Files left out, by reason and by name, over every skipped.jsonl and quarantine file."""
    title = "Skipped files"
    merged = out / "skipped.jsonl"  # the demo's own list of all stages' skips
    logs = [merged] if merged.is_file() else [*out.glob("**/skipped.jsonl")]
    logs += out.glob("**/quarantine-*.jsonl")
    rows = [row for path in sorted(logs) for row in read_rows(path)]
    if not logs:
        return Section(title, absent("No skipped.jsonl here: no stage that skips files has run."))
    if not rows:
        return Section(title, "<p>None.</p>")
    reasons = Counter(str(row.get("reason", "no reason given")) for row in rows)
    by_reason = table(
        ("files", "reason"),
        [[str(count), escape(reason)] for reason, count in reasons.most_common(30)],
        numbers=(0,),
    )
    names = table(
        ("file", "reason"),
        [[escape(_name(row)), escape(str(row.get("reason", "")))] for row in rows[:SHOWN_SKIPS]],
    )
    left = f"; the first {SHOWN_SKIPS} are shown" if len(rows) > SHOWN_SKIPS else ""
    return Section(
        title,
        f"<p>{len(rows)} skipped{left}.</p>{by_reason}"
        f"<details><summary>Every file</summary>{names}</details>",
    )


def _name(row: Row) -> str:
    return str(row.get("file") or row.get("name") or row.get("key") or "")


def timing_section(out: Path) -> Section:
    """Seconds of every stage, from stages.json."""
    title = "Timings"
    stages = read_stages(out)
    if not stages:
        return Section(title, absent("No stages.json here: this folder was not made by the demo."))
    longest = max(float(stage.get("seconds", 0)) for stage in stages) or 1.0
    rows = [
        [
            escape(str(stage.get("name", ""))),
            _status(str(stage.get("status", ""))),
            f"{float(stage.get('seconds', 0)):.1f}",
            f'<div class="share"><i style="background:#1d4ed8;opacity:.8;width:'
            f'{100 * float(stage.get("seconds", 0)) / longest:.1f}%"></i></div>',
            escape(str(stage.get("note", ""))),
        ]
        for stage in stages
    ]
    total = sum(float(stage.get("seconds", 0)) for stage in stages)
    rows.append(["<b>total</b>", "", f"<b>{total:.1f}</b>", "", ""])
    text = (
        '<p class="sub">The seconds of a skipped (unchanged) stage are those of the run that made '
        "its outputs.</p>"
    )
    head = ("stage", "status", "seconds", "", "note")
    return Section(title, text + table(head, rows, numbers=(2,)))


def _status(status: str) -> str:
    return f'<span class="failed">{status}</span>' if status == "failed" else escape(status)


def read_stages(out: Path) -> list[Row]:
    """Rows of stages.json, or none."""
    import json

    path = out / "stages.json"
    if not path.is_file():
        return []
    try:
        value = json.loads(path.read_text(errors="replace"))
    except json.JSONDecodeError:
        return []
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
