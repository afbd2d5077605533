"""The timing loop of all benchmarks: interleaved rounds, medians, one JSON line.

Times are milliseconds of wall clock. ``peak_rss_mib`` is the most resident memory of the whole
process, all variants together: allocators keep memory, so variants cannot be told apart in one.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def interleaved(
    variants: Mapping[str, Callable[[], object]], *, warm_up: int, rounds: int
) -> dict[str, dict[str, float]]:
    """{variant: {"min_ms", "median_ms", "p90_ms"}}; every round runs each variant once, in turning
    order."""
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            variants[name]()
            if number >= warm_up:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {
            "min_ms": round(min(found), 3),
            "median_ms": round(float(np.median(found)), 3),
            "p90_ms": round(float(np.percentile(found, 90)), 3),
        }
        for name, found in times.items()
    }


def line(benchmark: str, **entries: Any) -> str:
    """The JSON line."""
    about = {"benchmark": benchmark, "git": _commit(), "hardware": _hardware()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    load = os.getloadavg()[0]  # a busy machine shows itself
    return json.dumps({**about, "load": round(load, 2), **entries, "peak_rss_mib": round(peak)})


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _hardware() -> str:
    names = [
        text.split(":", 1)[1].strip()
        for text in Path("/proc/cpuinfo").read_text().splitlines()
        if text.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
