"""One self-contained HTML file about an output folder: what ran, what it learned, how long it took.

``write_report(out)`` reads the files of a demo folder or of a single run and writes
``out/report.html``. An input that is absent is named as absent; nothing is fetched.
"""

from __future__ import annotations

import shlex
from html import escape
from pathlib import Path

from ovtrain.observability.history import Row, read_object
from ovtrain.observability.report import data, learning, loading, training
from ovtrain.observability.report.charts import number
from ovtrain.observability.report.page import Section, absent, page, table, tiles
from ovtrain.observability.report.training import Run
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import OvtrainError

REPORT = "report.html"


def write_report(out: Path) -> Path:
    """Write ``out/report.html``, return its path. Raises OvtrainError where ``out`` is absent."""
    if not out.is_dir():
        raise OvtrainError(str(out), "no such folder", fix="name a demo or run folder")
    runs = training.find_runs(out)
    sections = [
        learning.section(out),
        training.loss_section(runs),
        data.picture_section(out),
        data.label_section(out),
        training.view_section(runs),
        training.speed_section(runs),
        loading.loading_section(runs),
        data.skipped_section(out),
        data.timing_section(out),
        _notes(out),
        _setup(out, runs),
    ]
    with atomic_open(out / REPORT, "w") as handle:
        handle.write(page(f"ovtrain: {out.resolve().name}", _lead(out, runs), sections))
    return out / REPORT


def _lead(out: Path, runs: list[Run]) -> str:
    about = read_object(out / "demo.json") or {}
    command = about.get("command") or next((run.about.get("command") for run in runs), None)
    ran = f"<p><code>{escape(_command(command))}</code></p>" if command else ""
    return ran + tiles(_tiles(out, runs))


def _command(command: object) -> str:
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command)


def _tiles(out: Path, runs: list[Run]) -> list[tuple[str, str]]:
    """The few numbers to see first; only those whose inputs exist."""
    found: list[tuple[str, str]] = []
    result = read_object(out / learning.RESULT) or {}
    for row in _headline(result.get("rows", [])):
        found.append(
            (f"{row['mean']:.3f}", f"{row['probe']} probe, {row['encoder']}, {row['view']}")
        )
    if isinstance(result.get("chance"), (int, float)):
        found.append((f"{result['chance']:.3f}", "chance"))
    steps = sum(int(run.rows[-1].get("step", 0)) for run in runs if run.rows)
    if runs:
        found.append((number(steps, 4), f"steps in {len(runs)} training runs"))
        parameters = next((run.about.get("parameters") for run in runs), None)
        if isinstance(parameters, (int, float)):
            found.append((number(parameters), "encoder parameters"))
    stages = data.read_stages(out)
    if stages:
        seconds = sum(float(stage.get("seconds", 0)) for stage in stages)
        found.append((f"{seconds / 60:.1f} min", f"in {len(stages)} stages"))
    return found


def _headline(rows: list[Row]) -> list[Row]:
    """Codec rows of the linear (else the first) probe: trained, untrained, control."""
    rows = [row for row in rows if isinstance(row.get("mean"), (int, float))]
    if not rows:
        return []
    first = next((row for row in rows if row.get("probe") == "linear"), rows[0])
    kind, view = first.get("probe"), first.get("view")
    return [row for row in rows if row.get("probe") == kind and row.get("view") == view][:3]


def _notes(out: Path) -> Section:
    """Sentences: what the probe and the demo say about their own numbers."""
    notes: list[str] = []
    for name in (learning.RESULT, Path("demo.json")):
        notes += (read_object(out / name) or {}).get("notes", [])
    if not notes:
        return Section("Notes", absent("No notes were written."))
    return Section("Notes", "".join(f"<p>{escape(note)}</p>" for note in notes))


def _setup(out: Path, runs: list[Run]) -> Section:
    """Versions, code state and resolved configs."""
    keys = ("precision", "parameters", "config_hash", "torch", "deepspeed", "code")
    rows = [
        [escape(run.name), *(escape(str(run.about.get(key) or "–")) for key in keys)]
        for run in runs
    ]
    body = table(("run", *keys), rows) if rows else absent("No run.json here.")
    configs = [*sorted((out / "configs").glob("*.yaml")), *sorted(out.glob("config.yaml"))]
    for path in configs:
        body += (
            f"<details><summary>{escape(str(path.relative_to(out)))}</summary>"
            f"<pre>{escape(path.read_text())}</pre></details>"
        )
    return Section("Setup", body)
