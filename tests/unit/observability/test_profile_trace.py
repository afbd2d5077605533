"""Traces written by hand: what each part of a step took, on a CPU and on a GPU."""

import gzip
import json
from itertools import count
from typing import Any

import pytest

from ovtrain.observability.profile.timeline import Interval, Timeline, layered
from ovtrain.observability.profile.trace import PREFIX, STEP, WINDOW, read_events, read_trace
from ovtrain.schema.errors import InputError

Event = dict[str, Any]
NUMBERS = count()


def event(cat: str, name: str, ts: float, dur: float, tid: int = 1, **args: Any) -> Event:
    found = {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid}
    return found | {"pid": 0, "args": args}


def part(name: str, ts: float, dur: float, tid: int = 1) -> Event:
    return event("user_annotation", PREFIX + name, ts, dur, tid)


def window(dur: float, steps: int = 1) -> list[Event]:
    each = dur / steps
    inner = [event("user_annotation", STEP, 1000 + i * each, each) for i in range(steps)]
    return [event("user_annotation", WINDOW, 1000, dur), *inner]


def launch(ts: float, ran: tuple[float, float], name: str = "gemm", tid: int = 1) -> list[Event]:
    number = next(NUMBERS)
    return [
        event("cuda_runtime", "cudaLaunchKernel", ts, 2, tid, correlation=number),
        event("kernel", name, ran[0], ran[1] - ran[0], 7, correlation=number, stream=7),
    ]


def test_a_timeline_gives_the_innermost_name_and_loses_no_time():
    line = Timeline(
        Interval(0, 100, "all"),
        [
            Interval(10, 60, "a"),
            Interval(20, 30, "b"),
            Interval(30, 40, "c"),
            Interval(90, 120, "d"),
        ],
    )
    assert line.totals() == {"all": 40, "a": 30, "b": 10, "c": 10, "d": 10}
    found = [line.at(time) for time in (0, 10, 25, 30, 45, 60, 95)]
    assert found == ["all", "a", "b", "c", "a", "all", "d"]


def test_layers_show_computing_over_what_runs_beside_it():
    pieces = layered(
        Interval(0, 100, "idle"),
        [Interval(10, 50, "comm"), Interval(40, 60, "a"), Interval(20, 30, "b")],
        below="comm",
    )
    assert [(p.name, p.start, p.end) for p in pieces] == [
        ("idle", 0, 10),
        ("comm", 10, 20),
        ("b", 20, 30),
        ("comm", 30, 40),
        ("a", 40, 50),
        ("a", 50, 60),
        ("idle", 60, 100),
    ]


def test_on_a_cpu_parts_are_ranges_less_those_inside_and_add_up_to_the_step():
    events = [
        *window(2000, steps=2),
        part("data wait", 1000, 300),
        part("forward", 1300, 400),
        part("backward", 1800, 600),
        part("communication", 1900, 100),
        part("optimizer", 2500, 100),
        part("forward", 500, 300),  # a warm-up step
    ]
    found = read_events(events)
    assert found.steps == 2
    assert found.step_ms == 1.0
    assert found.parts == pytest.approx(
        {
            "data wait": 0.15,
            "forward": 0.2,
            "backward": 0.25,
            "communication": 0.05,
            "optimizer": 0.05,
            "other": 0.3,
        }
    )
    assert (found.launches, found.syncs) == (None, None)


def test_operators_count_with_their_own_time_per_thread():
    events = [
        *window(1000, steps=2),
        event("cpu_op", "linear", 1100, 500),
        event("cpu_op", "addmm", 1200, 300),
        event("cpu_op", "addmm", 1100, 100, tid=2),
        event("cpu_op", "addmm", 100, 100),
    ]
    found = {one.name: (one.ms, one.calls) for one in read_events(events).operators}
    assert found == {"addmm": (0.2, 1.0), "linear": (0.1, 0.5)}


def gpu_step() -> list[Event]:
    """1000 us: the host launches in 400, the device begins at 100 and works until 900."""
    return [
        *window(1000),
        part("data wait", 1000, 60),
        part("forward", 1060, 140),
        event("cpu_op", "aten::mm", 1090, 20),
        *launch(1095, (1100, 1500)),
        part("backward", 1200, 200),
        event("cpu_op", "aten::mm", 1240, 20, tid=2),
        *launch(1250, (1500, 1800), tid=2),
        *launch(1300, (1750, 1900), "ncclDevKernel_AllReduce", tid=2),
        event("cuda_runtime", "cudaStreamSynchronize", 1400, 500, correlation=10**9),
        part("forward", 900, 50),
        *launch(910, (920, 1050)),  # of a step before the window
    ]


def test_on_a_gpu_parts_are_kernels_by_where_they_were_launched():
    found = read_events(gpu_step())
    assert found.step_ms == 1.0
    assert found.parts == pytest.approx(
        {
            "data wait": 0.06,  # the device had nothing to do, either
            "forward": 0.4,
            "backward": 0.3,
            "communication": 0.1,  # 50 of its 150 us run beside the backward pass
            "idle": 0.14,
        }
    )
    assert sum(found.parts.values()) == pytest.approx(found.step_ms)


def test_on_a_gpu_operators_are_those_that_launched_and_the_rest_by_kernel():
    found = read_events(gpu_step())
    largest, second = found.operators
    assert (largest.name, largest.ms, largest.calls) == ("aten::mm", pytest.approx(0.7), 2)
    assert (second.name, second.ms) == ("ncclDevKernel_AllReduce", pytest.approx(0.15))
    assert (found.launches, found.syncs) == (3, 1)


def test_a_gzipped_trace_reads_the_same(tmp_path):
    with gzip.open(tmp_path / "trace.json.gz", "wt") as handle:
        json.dump({"traceEvents": gpu_step()}, handle)
    assert read_trace(tmp_path / "trace.json.gz") == read_events(gpu_step())


def test_a_trace_without_a_window_is_refused():
    with pytest.raises(InputError, match="0 ranges"):
        read_events([part("forward", 0, 1)])
