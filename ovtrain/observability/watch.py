"""Terminal view of runs, from their metrics.jsonl alone: ``ovtrain watch RUN [--follow]``.

Works while the run is going on, over ssh, and on a folder copied from elsewhere.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TextIO

from ovtrain.observability.history import METRICS, Row, column, read_rows
from ovtrain.schema.errors import OvtrainError

BLOCKS = "▁▂▃▄▅▆▇█"
CLEAR = "\x1b[H\x1b[J"


def sparkline(values: list[float], width: int = 48) -> str:
    """Means of ``width`` equal pieces as block characters."""
    if not values:
        return ""
    pieces = min(width, len(values))
    cuts = [round(i * len(values) / pieces) for i in range(pieces + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(BLOCKS[int((m - low) / span * (len(BLOCKS) - 1))] for m in means)


def describe(name: str, rows: list[Row]) -> list[str]:
    """Lines about one run."""
    if not rows:
        return [f"{name}: no metrics yet"]
    last = rows[-1]
    lines = [f"{name}  step {last.get('step', '?')}"]
    keys = ["loss", *(key for key in last if key.startswith("loss/")), "grad_norm"]
    for key in keys:
        values = [value for _, value in column(rows, key)]
        if values:
            lines.append(f"  {key:<14} {sparkline(values)}  {values[0]:.4g} -> {values[-1]:.4g}")
    rates = [
        f"{name} {last[key]:.4g}"
        for key, name in (
            ("samples_per_s", "samples/s"),
            ("tokens_per_s", "tokens/s"),
            ("flops_per_s", "FLOP/s"),
            ("lr", "lr"),
        )
        if isinstance(last.get(key), (int, float))
    ]
    if isinstance(last.get("data_wait"), (int, float)):
        rates.append(f"data wait {100 * last['data_wait']:.1f} %")
    if isinstance(last.get("data_wait_ms"), (int, float)):
        rates.append(f"{last['data_wait_ms']:.3g} ms/step")
    if isinstance(last.get("comm"), (int, float)):
        rates.append(f"communication {100 * last['comm']:.1f} %")
    lines.append("  " + "   ".join(rates))
    if isinstance(last.get("views"), dict):
        lines.append("  views " + "  ".join(f"{k} {v}" for k, v in last["views"].items()))
    return lines + _loading(last)


def _loading(last: Row) -> list[str]:
    """What the loader says of itself."""
    stages = [
        f"{key.removeprefix('data_ms/')} {value:.3g}"
        for key, value in last.items()
        if key.startswith("data_ms/") and isinstance(value, (int, float))
    ]
    lines: list[str] = []
    if stages:
        ready = f"   {last['batches_ready']} batches ready" if "batches_ready" in last else ""
        lines.append(f"  ms/sample {'  '.join(stages)}{ready}")
    if last.get("bad_samples"):
        reasons = last.get("bad_reasons")
        named = reasons.items() if isinstance(reasons, dict) else ()
        why = ", ".join(f"{name} {count}" for name, count in named)
        lines.append(f"  bad samples {last['bad_samples']}" + (f": {why}" if why else ""))
    return lines


def runs_below(folder: Path) -> list[Path]:
    """Folders with metrics, ``folder`` itself first. Raises OvtrainError where there are none."""
    found = sorted(path.parent for path in folder.rglob(METRICS))
    if not found:
        raise OvtrainError(str(folder), f"no {METRICS} below it", fix="name a run directory")
    return found


def watch(
    folder: Path, follow: bool = False, interval: float = 5.0, stream: TextIO | None = None
) -> None:
    """Print the view once, or again every ``interval`` seconds until interrupted."""
    to = sys.stdout if stream is None else stream
    while True:
        lines: list[str] = []
        for run in runs_below(folder):
            name = run.name if run == folder else str(run.relative_to(folder))
            lines += [*describe(name, read_rows(run / METRICS)), ""]
        start = CLEAR if follow and to.isatty() else ""
        to.write(start + "\n".join(lines))
        to.flush()
        if not follow:
            return
        time.sleep(interval)
