"""torch's profiler trace (Chrome's format) -> where the time of a step went.

The job puts named ranges around the parts of a step, and one around all profiled steps, the window.
On a CPU a part's time is that of its range, less that of ranges inside it. On a GPU it is that of
the kernels launched inside the range, by the time on the device; where no kernel runs, the device
waits for what the host does: for data, in a collective, or ("idle") for its launches. Kernels of
collectives are communication wherever they were launched, and count where nothing else runs. Either
way the parts together are the window.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovtrain.observability.profile.timeline import Interval, Timeline, layered
from ovtrain.schema.errors import InputError

PREFIX = "ovtrain::"
WINDOW, STEP = PREFIX + "window", PREFIX + "step"
DATA, COMMUNICATION, OTHER, IDLE = "data wait", "communication", "other", "idle"
PARTS = (DATA, "forward", "head", "backward", COMMUNICATION, "optimizer")
"""Ranges by the name behind the prefix; time outside of them is "other"."""
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
RUNTIME = ("cuda_runtime", "cuda_driver")
Event = dict[str, Any]


@dataclass(frozen=True)
class Operator:
    """Own time of an operator, without those it calls: on a GPU, of the kernels that it launched.
    Both per step."""

    name: str
    ms: float
    calls: float


@dataclass(frozen=True)
class Reading:
    """All times in ms per step. ``parts`` add up to ``step_ms``; ``operators``: largest first.
    ``launches`` and ``syncs``: of kernels, and waits of the host for the device, per step; None
    without a GPU."""

    steps: int
    step_ms: float
    parts: dict[str, float]
    operators: list[Operator]
    launches: float | None
    syncs: float | None


def read_trace(path: Path) -> Reading:
    """Of a gzipped trace file. Raises InputError where it has no window."""
    with gzip.open(path, "rt") as handle:
        return read_events(json.load(handle)["traceEvents"], str(path))


def read_events(events: list[Event], where: str = "trace") -> Reading:
    whole = [event for event in events if event.get("ph") == "X"]
    windows = [
        event for event in whole if event["name"] == WINDOW and _is(event, "user_annotation")
    ]
    if len(windows) != 1:
        raise InputError(where, f"{len(windows)} ranges {WINDOW}", allowed="one")
    span = _interval(windows[0], OTHER)
    inside = [event for event in whole if span.start <= event["ts"] < span.end]
    steps = sum(_is_range(event, STEP) for event in inside)
    ranges = Timeline(span, _ranges(inside))
    operators = _own_operators(span, inside)
    kernels = _launched(whole, inside)
    if kernels:
        parts, found = _device(span, ranges, operators, kernels)
    else:
        parts, found = ranges.totals(), _host_operators(operators, inside)
    per_step = 1e-3 / max(steps, 1)
    order = (*PARTS, OTHER, IDLE)
    runtime = [event["name"] for event in inside if event.get("cat") in RUNTIME]
    return Reading(
        steps,
        (span.end - span.start) * per_step,
        {name: parts[name] * per_step for name in order if name in parts},
        sorted(
            (Operator(n, t * per_step, c / max(steps, 1)) for n, (t, c) in found.items()),
            key=lambda operator: -operator.ms,
        ),
        sum("LaunchKernel" in name for name in runtime) / max(steps, 1) if kernels else None,
        sum(name in SYNCS for name in runtime) / max(steps, 1) if kernels else None,
    )


def _is(event: Event, category: str) -> bool:
    return event.get("cat") == category


def _is_range(event: Event, name: str) -> bool:
    return _is(event, "user_annotation") and event["name"] == name


def _interval(event: Event, name: str | None = None) -> Interval:
    return Interval(event["ts"], event["ts"] + event["dur"], name or event["name"])


def _ranges(events: list[Event]) -> list[Interval]:
    known = {PREFIX + part: part for part in PARTS}
    return [
        _interval(event, known[event["name"]])
        for event in events
        if _is(event, "user_annotation") and event["name"] in known
    ]


def _own_operators(span: Interval, events: list[Event]) -> dict[Any, Timeline]:
    """Which operator is innermost, per thread."""
    threads: dict[Any, list[Interval]] = defaultdict(list)
    for event in events:
        if _is(event, "cpu_op"):
            threads[event["tid"]].append(_interval(event))
    return {thread: Timeline(span, ops) for thread, ops in threads.items()}


def _host_operators(
    operators: dict[Any, Timeline], events: list[Event]
) -> dict[str, tuple[float, int]]:
    """Own time and calls by name."""
    times: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for timeline in operators.values():
        for name, time in timeline.totals().items():
            times[name] += time
    for event in events:
        if _is(event, "cpu_op"):
            calls[event["name"]] += 1
    return {name: (times[name], count) for name, count in calls.items()}


@dataclass(frozen=True)
class _Kernel:
    """What ran on the device, and when and on which thread the host launched it."""

    ran: Interval
    launched: float
    thread: Any


def _launched(whole: list[Event], inside: list[Event]) -> list[_Kernel]:
    """Kernels (and copies) of launches inside the window, whenever they ran."""
    launches = {
        event["args"]["correlation"]: event
        for event in inside
        if event.get("cat") in RUNTIME and "correlation" in event.get("args", {})
    }
    return [
        _Kernel(_interval(event), launch["ts"], launch["tid"])
        for event in whole
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
        and (launch := launches.get(event["args"].get("correlation"))) is not None
    ]


def _device(
    span: Interval, ranges: Timeline, operators: dict[Any, Timeline], kernels: list[_Kernel]
) -> tuple[dict[str, float], dict[str, tuple[float, int]]]:
    """Time of parts, and of operators with their launches, by the device's clock."""
    busy: list[Interval] = []
    found: dict[str, tuple[float, int]] = {}
    for kernel in kernels:
        collective = "nccl" in kernel.ran.name.lower()
        part = COMMUNICATION if collective else ranges.at(kernel.launched)
        busy.append(Interval(kernel.ran.start, kernel.ran.end, part))
        own = operators.get(kernel.thread)
        name = own.at(kernel.launched) if own is not None else OTHER
        name = kernel.ran.name if name == OTHER else name
        time, calls = found.get(name, (0.0, 0))
        found[name] = (time + kernel.ran.end - kernel.ran.start, calls + 1)
    parts: dict[str, float] = defaultdict(float)
    for piece in layered(Interval(span.start, span.end, IDLE), busy, COMMUNICATION):
        if piece.name == IDLE:
            _add_idle(parts, piece, ranges)
        else:
            parts[piece.name] += piece.end - piece.start
    return dict(parts), found


def _add_idle(parts: dict[str, float], gap: Interval, ranges: Timeline) -> None:
    """The device has nothing to do: the host waits for data or for other ranks, or is slow."""
    for piece in ranges.overlapping(gap.start, gap.end):
        cause = piece.name if piece.name in (DATA, COMMUNICATION) else IDLE
        parts[cause] += piece.end - piece.start
