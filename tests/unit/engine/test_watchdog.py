"""Hung steps leave their stacks and may end the process; others leave nothing."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ovtrain.engine.watchdog import HEADER, REQUEUE, Watchdog

LIMIT = 0.3


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Watchdog]]:
    started: list[Watchdog] = []

    def begin() -> Watchdog:
        started.append(Watchdog(tmp_path, 3, LIMIT, end=False))
        return started[-1]

    yield begin
    for watchdog in started:
        watchdog.close()


def hang_here(seconds: float) -> None:
    time.sleep(seconds)


def test_a_hung_step_leaves_its_stacks_under_a_header_and_a_line_in_the_log(start, caplog):
    watchdog = start()
    with caplog.at_level(logging.WARNING):
        watchdog.beat(11)
        watchdog.beat(12)
        hang_here(1.5 * LIMIT)
    watchdog.close()
    text = watchdog.path.read_text()
    header, stacks = text[:HEADER], text[HEADER:]
    assert watchdog.path.name == "stacks-00003.txt"
    assert header.startswith("=== rank 3 on ")
    assert "step 12 began at" in header
    assert "in hang_here" in stacks
    assert "(most recent call first)" in stacks
    (line, _) = [record.getMessage() for record in caplog.records]
    assert "step 12 takes longer than 0.3 s" in line
    assert str(watchdog.path) in line


def test_steps_in_time_leave_nothing(start, caplog):
    watchdog = start()
    for step in range(8):
        watchdog.beat(step)
        time.sleep(0.3 * LIMIT)
    watchdog.close()
    assert not watchdog.path.exists()
    assert not caplog.records


def test_a_step_after_a_hung_one_is_watched_under_a_header_of_its_own(start):
    watchdog = start()
    for step in (1, 2):
        watchdog.beat(step)
        hang_here(1.2 * LIMIT)
    watchdog.beat(3)
    watchdog.close()
    text = watchdog.path.read_text()
    assert text.count("=== rank 3") == 2
    assert text.index("step 1 began") < text.index("in hang_here") < text.index("step 2 began")
    assert "step 3" not in text


def test_what_is_allowed_to_take_longer_does_and_the_step_has_its_whole_time_after_it(start):
    watchdog = start()
    watchdog.beat(1)
    with watchdog.allowing("saving", 10 * LIMIT):
        time.sleep(1.5 * LIMIT)
    time.sleep(0.6 * LIMIT)
    watchdog.close()
    assert not watchdog.path.exists()


def test_what_is_allowed_longer_may_hang_too(start):
    watchdog = start()
    with watchdog.allowing("loading a checkpoint", 0.5 * LIMIT):
        hang_here(LIMIT)
    time.sleep(1.5 * LIMIT)  # nothing is watched
    watchdog.close()
    text = watchdog.path.read_text()
    assert "loading a checkpoint began" in text
    assert text.count("===") == 1


def test_stacks_of_an_earlier_start_are_kept(start):
    for step in (1, 2):
        watchdog = start()
        watchdog.beat(step)
        hang_here(1.2 * LIMIT)
        watchdog.close()
    assert watchdog.path.read_text().count("in hang_here") >= 2


def test_without_a_limit_there_is_no_watchdog(tmp_path):
    watchdog = Watchdog(tmp_path / "logs", 0, 0.0, end=True)
    watchdog.beat(1)
    with watchdog.allowing("saving", 1.0):
        pass
    watchdog.close()
    assert not (tmp_path / "logs").exists()


HANGS = """
import ctypes, sys, time
from pathlib import Path
from ovtrain.engine.watchdog import Watchdog

def with_the_lock(seconds):
    ctypes.PyDLL(None).sleep(seconds)

def without_it(seconds):
    time.sleep(seconds)

watchdog = Watchdog(Path(sys.argv[1]), 0, 0.3, end=True)
watchdog.beat(7)
globals()[sys.argv[2]](20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs POSIX timers")
@pytest.mark.parametrize("hang", ["with_the_lock", "without_it"])
def test_after_twice_its_time_a_process_ends_for_the_scheduler(tmp_path, hang):
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path), hang], timeout=15, check=False
    )
    assert ended.returncode == REQUEUE == 75
    assert time.monotonic() - began < 10
    text = (tmp_path / "stacks-00000.txt").read_text()
    assert "step 7 began" in text
    assert f"in {hang}" in text


SLOW = """
import sys, time
from pathlib import Path
from ovtrain.engine.watchdog import Watchdog

def deep(calls):
    return calls if calls <= 0 else deep(calls - 1)

limit, steps = float(sys.argv[2]), int(sys.argv[3])
watchdog = Watchdog(Path(sys.argv[1]), 0, limit, end=sys.argv[4] == "end")
for step in range(steps):
    watchdog.beat(step)
    ends = time.monotonic() + 3 / steps
    while time.monotonic() < ends:
        deep(800)
watchdog.close()
"""


@pytest.mark.parametrize(
    ("limit", "steps", "end"),
    [
        pytest.param(0.002, 1, "stay", id="stacks_of_frames_that_come_and_go"),
        pytest.param(1.0, 2, "end", id="a_time_of_its_own_for_each_step"),
    ],
)
def test_a_slow_step_that_still_runs_is_not_ended_by_being_looked_at(tmp_path, limit, steps, end):
    slow = [sys.executable, "-c", SLOW, str(tmp_path), str(limit), str(steps), end]
    assert subprocess.run(slow, timeout=60, check=False).returncode == 0
    assert (tmp_path / "stacks-00000.txt").read_text().count("=== rank 0") == steps
