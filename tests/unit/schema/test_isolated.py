"""A child process: what it may do to itself costs one task, and nothing outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ovtrain.schema.errors import MediaError
from ovtrain.schema.isolated import Child, Failure


def act(task):
    """What the tests ask a child to do."""
    if not isinstance(task, str):
        return task
    if task == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        time.sleep(60)
    if task == "swell":
        return len(np.ones(2**28)) and "swollen"  # 2 GiB
    if task == "bad":
        raise MediaError("a.mp4", "no video track (of 2)", allowed="one")
    if task == "defect":
        raise KeyError("ours")
    if task == "modules":
        return sorted(name for name in ("torch", "tests.conftest", "pytest") if name in sys.modules)
    return os.getpid() if task == "pid" else task


@pytest.fixture
def child():
    child = Child(act, (MediaError,), timeout_s=2, memory_mib=1024)
    yield child
    child.stop(kill=True)


def test_arrays_come_back_whole_and_writable(child: Child):
    """Some larger than a socket holds, some empty, some not in the order of memory."""
    wide = np.arange(3_000_000, dtype=np.int64).reshape(3, -1)
    sent = {"wide": wide, "none": np.empty((0, 5), np.uint8), "parts": [wide[:, ::7], wide.T, 3]}
    for _ in range(2):
        found = child.call(sent)
        assert np.array_equal(found["wide"], wide)
        assert found["none"].shape == (0, 5)
        assert np.array_equal(found["parts"][0], wide[:, ::7])
        assert np.array_equal(found["parts"][1], wide.T)
        found["wide"][:] = 0


@pytest.mark.parametrize(
    ("task", "reason", "replaced"),
    [
        ("crash", "worker process died (exit code -11)", True),
        ("hang", "timed out (more than 2 s)", True),
        ("swell", "out of memory (more than 1024 MiB)", False),
        ("bad", "no video track (of 2)", False),
        ("defect", "worker process died (exit code 1)", True),
    ],
)
def test_a_bad_task_costs_itself(child: Child, task: str, reason: str, replaced: bool):
    before = child.call("pid")
    assert child.call(task) == Failure(reason, defect=task == "defect")
    after = child.call("pid")
    assert (after != before) == replaced
    assert child.starts == 1 + replaced


def test_a_category_is_the_reason_without_details():
    assert Failure("timed out (more than 2 s)").category == "timed out"


def test_arrays_come_back(child: Child):
    array = np.arange(10**6)
    assert np.array_equal(child.call(array), array)


def test_a_task_whose_child_is_killed_from_outside_is_tried_once_more(child: Child):
    os.kill(child.call("pid"), signal.SIGKILL)
    time.sleep(0.1)
    assert child.call("echo") == "echo"
    assert child.starts == 2


def test_a_scheduler_s_signals_are_the_parent_s_to_answer(child: Child):
    pid = child.call("pid")
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(pid, number)
    time.sleep(0.1)
    assert child.call("pid") == pid


def test_a_child_imports_what_its_work_needs(child: Child):
    assert child.call("modules") == ["pytest"]  # this module's own import


def test_a_child_that_hangs_dies_with_its_parent():
    code = (
        "import os; from ovtrain.schema.isolated import Child; from tests.unit.schema import "
        "test_isolated as t; c = Child(t.act, (), 60); print(c.call('pid'), flush=True); "
        "c.send('hang'); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    status = Path(f"/proc/{int(found.stdout)}/stat")
    for _ in range(100):
        if not status.exists() or ") Z " in status.read_text():
            return
        time.sleep(0.05)
    raise AssertionError("it lives on")
