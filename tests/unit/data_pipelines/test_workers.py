"""A crash or a hang costs one task; worker after worker dying stops the run."""

import os
import signal
import time

import pytest

from data_pipelines.workers import Failure, WorkerError, Workers
from ovtrain.schema.errors import MediaError
from ovtrain.schema.isolated import DIED


def act(task: str) -> str:
    if task == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "defect":
        raise KeyError(task)
    if task == "hang":
        time.sleep(60)
    if task == "bad":
        raise MediaError("file.mp4", "no video track")
    return task.upper()


def test_a_crash_a_hang_and_a_bad_file_each_cost_one_task():
    tasks = ["a", "crash", "b", "hang", "bad", "c"]
    with Workers(act, 2, timeout_s=5) as pool:
        answers = dict(pool.run(tasks))
    assert answers == {
        0: "A",
        1: Failure("worker process died (exit code -11)"),
        2: "B",
        3: Failure("timed out (more than 5 s)"),
        4: Failure("no video track"),
        5: "C",
    }


@pytest.mark.parametrize(("task", "code"), [("defect", 1), ("killed", -9)])
def test_worker_after_worker_failing_for_no_file_s_fault_stops_the_run(task: str, code: int):
    with Workers(act, 1, timeout_s=20) as pool:
        found = pool.run([task] * 20)
        with pytest.raises(WorkerError, match=f"exit code {code}"):
            list(found)


def test_any_number_of_crashing_files_stops_nothing():
    with Workers(act, 1, timeout_s=20) as pool:
        answers = dict(pool.run([*["crash"] * 7, "a"]))
    assert answers.pop(7) == "A"
    assert {answer.reason for answer in answers.values()} == {DIED + " (exit code -11)"}


def test_no_task_is_no_work():
    with Workers(act, 2) as pool:
        assert list(pool.run([])) == []
