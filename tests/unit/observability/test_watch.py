"""The terminal view needs nothing but metrics.jsonl, and fits into its terminal."""

import io
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from launch.commands.inspection import watch as watch_command
from ovtrain.observability.history import read_rows
from ovtrain.observability.panel import duration, sparkline
from ovtrain.observability.watch import watch
from ovtrain.schema.errors import OvtrainError
from tests.helpers.world import environment
from tests.unit.observability.folder import started, write_lines, write_run


def shown(path: Path, width: int = 80) -> str:
    text = io.StringIO()
    watch(path, stream=text, width=width)
    lines = text.getvalue().splitlines()
    assert [line for line in lines if cell_len(line) > width] == []
    return "\n".join(line.rstrip() for line in lines)


def test_runs_below_a_folder_are_shown(tmp_path):
    write_run(tmp_path / "a/stage2", video=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/metrics.jsonl").write_text("")
    text = shown(tmp_path)
    assert text.startswith("stage2  2 ranks, CPU\n━")
    assert "━ 100.0 %" in text
    assert "step 400 of 400   finished" in text
    for part in (
        *(
            "video            █",
            "101 samples/s   23.5k tokens/s   FLOP/s",
            "data wait 3.1 % (3.1 ms)",
        ),
        *("communication 12.5 %", "read 0.2 ms   decode 10.1 ms   2 batches ready"),
        *("codec 0.500 (0.5)   frames 0.375 (0.375)   tiling 0.125 (0.125)",),
        *("bad 3: cut short 1, does not decode 2", "b\nstep 0   no rows yet"),
    ):
        assert part.replace("FLOP/s", "120G FLOP/s") in text, part


def test_a_copied_file_alone_says_as_much(tmp_path):
    rows = [started(0), *({"step": s, "time": 1e3 + 2 * s, "loss": 1 / s} for s in (10, 20, 30))]
    write_lines(tmp_path / "copy.jsonl", rows)
    text = shown(tmp_path / "copy.jsonl")
    assert text.startswith("copy  2 ranks, 2 hosts, CPU\n")
    assert "step 30 of 400" in text
    assert "silent" in text
    assert "to go" not in text  # nobody goes


def test_a_living_run_says_how_long_it_takes(tmp_path):
    now = time.time()
    rows = [started(0), *({"step": s, "time": now - 60 + 2 * s, "loss": 1 / s} for s in (10, 20))]
    write_lines(tmp_path / "metrics.jsonl", rows)
    text = shown(tmp_path)
    assert "last row 2" in text
    assert "   12 min to go" in text  # 380 steps of 2 s


def test_restarts_stops_and_faults_are_told(tmp_path):
    after = {"why": "NCCL error: " + 30 * "very long ", "rank": 1, "node": "n2", "kind": "failed"}
    fault = {"event": "fault", "kind": "spike", "step": 9, "time": 9, "message": "step 9: a spike"}
    rows = [started(0), {"step": 9, "time": 9.0, "loss": 1.0, "skipped_steps": 2}, fault]
    rows += [started(8, after=after), {"step": 10, "time": 20.0, "loss": 1.0, "skipped_steps": 2}]
    write_lines(tmp_path / "metrics.jsonl", [*rows, {"event": "stop", "step": 10, "time": 21.0}])
    text = shown(tmp_path)
    assert "restarts         1, the last at step 8\n                 NCCL error: very" in text
    assert "skipped steps 2   1 on record   step 9: a spike" in text
    assert "stopped after saving" in text


@pytest.mark.parametrize("width", [80, 132, 40])
def test_no_line_is_wider_than_the_terminal(tmp_path, width: int):
    names = ["映像" * 20, "a-very-long-name-of-a-source-that-goes-on-and-on", "é"]
    values = {f"loss/{name}": 123.456789e-7 for name in names}
    row = {"loss": float("nan"), "views": {"codec": 1}, "bad_reasons": {"映" * 99: 3}}
    rows = [{"step": s, "time": 1e9, **values, **row, "bad_samples": 3} for s in range(1, 200)]
    write_lines(tmp_path / ("映" * 30) / "metrics.jsonl", rows)
    write_run(tmp_path / "plain", video=True)
    text = shown(tmp_path, width)
    assert "nan" in text
    assert "loss" in text


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", '{"step": 1, "loss": 2.0}\n{"step": 2, "lo', '{"step": 1, "time": null}\n'),
        *('{"event": "start", "step": 0}\n', '{"event": "fault", "step": 4, "kind": "hung"}\n'),
        '{"step": 3, "loss": NaN, "loss/a": Infinity, "time": 5, "views": 7, "mfu": "?"}\n[1]\n7\n',
    ],
)
def test_torn_empty_and_odd_files_are_shown(tmp_path, content: str):
    (tmp_path / "metrics.jsonl").write_text(content)
    assert shown(tmp_path).startswith(tmp_path.name[:20])


def state(path: Path, *lines: Mapping[str, Any]) -> str:
    """The line of the run's state; times of ``lines`` are seconds from now."""
    now = time.time()
    write_lines(path / "metrics.jsonl", [{**row, "time": now + row["time"]} for row in lines])
    return next(line for line in shown(path).splitlines() if line.startswith("step "))


def test_a_start_that_lasts_too_long_is_silent(tmp_path):
    for seconds, silent in ((-1800, False), (-256_000, True)):
        assert ("silent" in state(tmp_path, started(0) | {"time": seconds})) is silent
    rows = [{"step": s, "time": -1e4 + 1e3 * s} for s in (1, 2)]
    slow = state(tmp_path, started(0) | {"time": -1e4}, *rows, started(2) | {"time": -4000})
    assert "silent" not in slow  # a row every 17 minutes


def test_a_fault_is_no_sign_of_life(tmp_path):
    rows = [{"step": s, "time": -9e3 + s} for s in (1, 2, 3)]
    fault = {"event": "fault", "step": 4, "time": -20, "message": "no"}
    first = started(0) | {"time": -9e3}
    assert "silent" in state(tmp_path, first, *rows, fault | {"kind": "hung"})
    for kind in ("nonfinite", "stopped"):
        line = state(tmp_path, first, *rows, fault | {"kind": kind})
        assert "ended by a fault 20 s ago" in line
        assert "to go" not in line
    rise = fault | {"kind": "rise"}
    assert "silent" in state(tmp_path, first, *rows, rise)
    stops = first | {"config": {"guards": {"on_spike": "stop"}}}
    assert "ended by a fault" in state(tmp_path, stops, *rows, rise)


def test_rank_0_can_be_the_slowest_unless_it_is_alone(tmp_path):
    last = {"step": 1, "time": 0, "slowest_rank": 0}
    for size, told in ((2, True), (1, False)):
        state(tmp_path, started(0, world_size=size), last)
        assert ("slowest rank 0" in shown(tmp_path)) is told


def test_following_waits_for_the_first_row(tmp_path, monkeypatch):
    run, text, naps = tmp_path / "run", io.StringIO(), []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt
        write_run(run, video=False)

    monkeypatch.setattr(time, "sleep", sleep)
    watch(run, follow=True, stream=text, width=200)
    before, after = text.getvalue().split("\n", 1)
    assert before == f"{run}: no rows yet"
    assert "step 400 of 400" in after


@pytest.mark.parametrize("interval", ["-1", "0"])
def test_an_interval_is_positive(tmp_path, interval: str):
    done = CliRunner().invoke(watch_command, [str(tmp_path), "--follow", "--interval", interval])
    assert done.exit_code == 2
    assert "--interval" in done.output


def test_no_run_is_a_typed_error(tmp_path):
    with pytest.raises(OvtrainError, match=r"no metrics\.jsonl.*has not begun to train"):
        watch(tmp_path)


def test_following_draws_again_and_ends_by_an_interrupt(tmp_path):
    write_run(tmp_path, video=True)
    leader, terminal = pty.openpty()
    command = [sys.executable, "-m", "launch.cli", "watch", str(tmp_path), "--follow"]
    job = subprocess.Popen(
        [*command, "--interval", "0.1"],
        env=environment() | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "30"},
        stdout=terminal,
        stderr=subprocess.PIPE,
    )
    os.close(terminal)
    seen = b""
    while seen.count(b"\x1b[H\x1b[J") < 3:
        seen += os.read(leader, 4096)
    job.send_signal(signal.SIGINT)
    try:
        while block := os.read(leader, 4096):
            seen += block
    except OSError:  # the other side is closed
        pass
    os.close(leader)
    assert job.wait(20) == 0
    assert job.stderr is not None
    assert job.stderr.read() == b""
    job.stderr.close()
    assert b"\x1b[32mfinished" in seen  # in colour
    assert seen.endswith(b"\x1b[?25h")  # the cursor is back


def test_sparkline_spans_low_to_high():
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([]) == ""
    assert len(sparkline([float(i) for i in range(1000)])) == 48


def test_durations_have_two_units():
    found = [duration(s) for s in (-3, 59, 61, 3600 * 3 + 125, 86400 * 2.5)]
    assert found == ["0 s", "59 s", "1 min", "3 h 2 min", "2 d 12 h"]


def test_a_run_directory_needs_no_other_file(tmp_path):
    write_run(tmp_path / "run", video=True)
    write_lines(
        tmp_path / "alone/metrics.jsonl", [started(0), *read_rows(tmp_path / "run/metrics.jsonl")]
    )
    lines = shown(tmp_path / "alone").splitlines()[1:]
    assert lines == shown(tmp_path / "run").splitlines()[1:]
