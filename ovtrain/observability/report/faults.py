"""What went wrong in runs: faults by kind, samples that could not be used by reason and source."""

from __future__ import annotations

from collections import Counter
from html import escape

from ovtrain.observability.history import Row, read_rows
from ovtrain.observability.report.numbers import number
from ovtrain.observability.report.page import Section, absent, table
from ovtrain.observability.report.training import clock
from ovtrain.observability.runs import Run

SHOWN = 50


def fault_section(runs: list[Run]) -> Section:
    body = "<h3>Steps and ranks</h3>" + _faults(runs)
    body += "<h3>Samples that could not be used</h3>" + _reasons(runs)
    return Section("Faults", body + "".join(map(_quarantine, runs)))


def _faults(runs: list[Run]) -> str:
    counts = [
        [escape(run.name), escape(kind), str(count)]
        for run in runs
        for kind, count in Counter(str(f.get("kind")) for f in run.of("fault")).most_common()
    ]
    if not counts:
        return "<p>No fault is on record.</p>"
    return table(("run", "fault", "count"), counts, numbers=(2,)) + "".join(map(_listed, runs))


def _listed(run: Run) -> str:
    found = run.of("fault")
    keys = ("step", "kind", "message")
    if not found:
        return ""
    rows = [[clock(row), *(escape(str(row.get(k, ""))) for k in keys)] for row in found[-SHOWN:]]
    left = f", the last {SHOWN} of {len(found)}" if len(found) > SHOWN else ""
    summary = f"<summary>Faults of {escape(run.name)}{left}</summary>"
    return (
        f"<details>{summary}{table(('when', *keys), rows, numbers=(1,))}</details>" if rows else ""
    )


def _reasons(runs: list[Run]) -> str:
    """By the metrics, which count all ranks."""
    rows = [
        [escape(run.name), escape(reason), number(count, 4)]
        for run in runs
        for reason, count in sorted(reasons(run.rows).items(), key=lambda pair: -pair[1])
    ]
    if not rows:
        return "<p>Every sample could be used.</p>"
    return table(("run", "reason", "samples"), rows, numbers=(2,))


def reasons(rows: list[Row]) -> dict[str, int]:
    """Unusable samples so far by the category of their reason."""
    found = rows[-1].get("bad_reasons") if rows else None
    if not isinstance(found, dict):
        return {}
    return {str(name): int(count) for name, count in found.items() if isinstance(count, int)}


def _quarantine(run: Run) -> str:
    """By the files beside the metrics, which name each sample."""
    found = [
        row for path in sorted(run.folder.glob("quarantine-*.jsonl")) for row in read_rows(path)
    ]
    if not found:
        if not reasons(run.rows):
            return ""
        return absent(f"{run.name}: no quarantine-*.jsonl beside its metrics.")
    sources = Counter(str(row.get("source", "")) for row in found).most_common(SHOWN)
    counts = [[escape(name), str(count)] for name, count in sources]
    keys = ("step", "source", "name", "reason")
    rows = [[escape(str(row.get(key, ""))) for key in keys] for row in found[:SHOWN]]
    left = f", the first {SHOWN} of {len(found)}" if len(found) > SHOWN else ""
    summary = f"<summary>Quarantine of {escape(run.name)}{left}</summary>"
    return (
        table((f"source of {escape(run.name)}", "samples in quarantine"), counts, numbers=(1,))
        + f"<details>{summary}{table(keys, rows, numbers=(0,))}</details>"
    )
