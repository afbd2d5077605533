"""One self-contained HTML file: what ran, what it learned, how long it took.

``write_report`` reads runs (their metrics.jsonl, or copies of it, is all it needs) and compares
them, or a demo's whole folder. An input that is absent is named as absent; nothing is fetched.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ovtrain.observability.history import METRICS, Row, read_object
from ovtrain.observability.report import compared, data, faults, learning, loading, training
from ovtrain.observability.report.numbers import number
from ovtrain.observability.report.page import Section, absent, page, table, tiles
from ovtrain.observability.runs import Run, read_runs
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import OvtrainError

REPORT = "report.html"
DEMO = (Path("demo.json"), Path("stages.json"), learning.RESULT)
"""A folder that holds one of them is a demo's."""


def write_report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page about ``paths``, return where it is: ``out``, or else REPORT in the one folder
    that was named, or REPORT here. Raises OvtrainError where a path is absent or holds no run."""
    for path in paths:
        if not path.exists():
            raise OvtrainError(str(path), "no such folder or file", fix="name a demo or run folder")
    one = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
    if one is not None and not (one / METRICS).is_file() and _is_demo(one):
        text = _folder_page(one)
    else:
        text = _run_page(read_runs(paths))
    target = out or (one or Path()) / REPORT
    with atomic_open(target, "w") as handle:
        handle.write(text)
    return target


def _is_demo(folder: Path) -> bool:
    return any((folder / name).is_file() for name in DEMO)


def _run_page(runs: list[Run]) -> str:
    """One run, or several compared."""
    sections = [
        compared.summary_section(runs),
        compared.learning_section(runs),
        compared.speed_section(runs),
        compared.starts_section(runs),
        training.view_section(runs),
        loading.loading_section(runs),
        faults.fault_section(runs),
        compared.config_section(runs),
        compared.picture_section(runs),
    ]
    names = [run.name for run in runs]
    title = names[0] if len(names) == 1 else f"{len(names)} runs compared"
    command = next((run.about["command"] for run in runs if run.about.get("command")), None)
    lead = _ran(command) if len(runs) == 1 else f"<p>{escape(', '.join(names))}</p>"
    return page(f"ovtrain: {title}", lead, sections)


def _folder_page(out: Path) -> str:
    """A folder of the demo, whatever of it is there."""
    runs = training.find_runs(out)
    sections = [
        learning.section(out),
        training.loss_section(runs),
        data.picture_section(out),
        data.label_section(out),
        training.view_section(runs),
        training.speed_section(runs),
        loading.loading_section(runs),
        faults.fault_section(runs),
        data.skipped_section(out),
        data.timing_section(out),
        _notes(out),
        _setup(out, runs),
    ]
    return page(f"ovtrain: {out.resolve().name}", _lead(out, runs), sections)


def _lead(out: Path, runs: list[Run]) -> str:
    about = read_object(out / "demo.json") or {}
    command = about.get("command") or next((run.about.get("command") for run in runs), None)
    return _ran(command) + tiles(_tiles(out, runs))


def _ran(command: object) -> str:
    if not command:
        return ""
    text = shlex.join(map(str, command)) if isinstance(command, list) else str(command)
    return f"<p><code>{escape(text)}</code></p>"


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
