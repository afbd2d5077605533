"""Children: their lines, statuses, first error, signals and environment."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch.local import Relay, failure
from launch.processes import cores, run_process, worker_env
from ovtrain.schema.status import SAVED


def python(code: str) -> list[str]:
    return [sys.executable, "-uc", code]


def test_lines_and_status_come_back():
    lines: list[str] = []
    outcome = run_process(
        python("print('a'); print('b'); raise SystemExit(7)"), os.environ, lines.append
    )
    assert lines == ["a", "b"]
    assert outcome.status == 7


def test_the_first_error_line_is_kept_whatever_its_prefix():
    code = "print('[rank 1] error: no shards'); print('error: other'); raise SystemExit(2)"
    outcome = run_process(python(code), os.environ, lambda _: None)
    assert (outcome.status, outcome.error) == (2, "no shards")


TORCHRUN_REPORT = """
Failures:
[1]:
  rank      : 1 (local_rank: 1)
  exitcode  : -15 (pid: 12)
Root Cause (first observed failure):
[0]:
  rank      : 3 (local_rank: 3)
  exitcode  : 2 (pid: 11)
"""


def test_torchruns_root_cause_gives_status_and_rank():
    code = f"print({TORCHRUN_REPORT!r}); raise SystemExit(1)"
    outcome = run_process(python(code), os.environ, lambda _: None)
    assert (outcome.status, outcome.rank) == (2, 3)


POLITE = """
import signal, sys, time
def save(*_):
    print('saving')
    time.sleep(0.5)  # during which a second signal must not come
    print({said!r})
    sys.exit({status})
signal.signal(signal.SIGTERM, save)
print('ready')
time.sleep(30)
"""


@pytest.mark.parametrize(
    ("number", "unsaved"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
@pytest.mark.parametrize(
    ("said", "status", "saved"),
    [("done", 75, True), (f"12:00 [0/2] {SAVED}", 1, True), ("no room", 2, False)],
)
def test_signals_reach_the_child_once_as_a_polite_end(
    number: int, unsaved: int, said: str, status: int, saved: bool
):
    """torchrun's status says nothing of its ranks', so their word counts, too."""
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line == "ready":
            for delay in (0.05, 0.25):
                threading.Timer(delay, os.kill, (os.getpid(), number)).start()

    start = time.monotonic()
    code = POLITE.format(said=said, status=status)
    outcome = run_process(python(code), os.environ, on_line)
    assert lines == ["ready", "saving", said]
    assert outcome.status == (75 if saved else unsaved)
    assert time.monotonic() - start < 20


def test_no_child_is_left_behind_when_the_reader_fails():
    pids: list[int] = []

    def on_line(line: str) -> None:
        pids.append(int(line))
        raise RuntimeError("reader")

    with pytest.raises(RuntimeError, match="reader"):
        run_process(
            python("import os, time; print(os.getpid()); time.sleep(30)"), os.environ, on_line
        )
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_cores_are_shared_out_unless_set():
    assert worker_env(2, {})["OMP_NUM_THREADS"] == str(max(cores() // 2, 1))
    assert worker_env(4096, {})["OMP_NUM_THREADS"] == "1"
    assert worker_env(2, {"OMP_NUM_THREADS": "5"})["OMP_NUM_THREADS"] == "5"


def test_an_error_and_its_aftermath_stay_in_the_log(tmp_path):
    shown: list[str] = []
    log = tmp_path / "log"
    with open(log, "w") as handle:
        relay = Relay(handle, shown.append)
        for line in (
            "step 1",
            "error: bad key",
            "E0712 failed",
            "Traceback (most recent call last):",
        ):
            relay(line)
    assert shown == ["step 1"]
    assert log.read_text().count("\n") == 4


def test_a_crash_is_shown_with_its_traceback(tmp_path):
    shown: list[str] = []
    with open(tmp_path / "log", "w") as handle:
        relay = Relay(handle, shown.append)
        relay("Traceback (most recent call last):")
        relay("ZeroDivisionError: division by zero")
    assert len(shown) == 2


def test_failure_names_error_rank_and_log(tmp_path):
    outcome = run_process(
        python(f"print('error: bad'); print({TORCHRUN_REPORT!r}); raise SystemExit(1)"),
        os.environ,
        lambda _: None,
    )
    assert failure(outcome, tmp_path / "log") == (
        f"error: bad (first failing rank: 3)\n  log: {tmp_path / 'log'}"
    )


def test_a_rank_that_a_signal_ended_is_named(tmp_path):
    report = TORCHRUN_REPORT.replace("exitcode  : 2", "exitcode  : -9")
    assert "exitcode  : -9" in report
    work = f"print({report!r}); raise SystemExit(1)"
    outcome = run_process(python(work), os.environ, lambda _: None)
    told = "ended by signal 9 (first failing rank: 3), unsaved since the newest checkpoint"
    assert failure(outcome, tmp_path).startswith(told)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a promise of Linux")
def test_a_killed_launcher_takes_its_child_with_it():
    job = "import os, time; print(os.getpid()); time.sleep(60)"
    launcher = subprocess.Popen(
        python(
            "import os, sys; from launch.processes import run_process; "
            f"run_process([sys.executable, '-uc', {job!r}], os.environ, print)"
        ),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert launcher.stdout is not None
    with launcher, launcher.stdout as lines:
        child = int(lines.readline())
        launcher.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _running(child):
        time.sleep(0.05)
    assert not _running(child)


def _running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
