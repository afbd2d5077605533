"""A crash or a hang costs one task; worker after worker dying stops the run."""

import os
import signal
import time

import pytest

from data_pipelines.workers import Failure, WorkerError, Workers
from ovtrain.schema.errors import MediaError


def act(task: str) -> str:
    if task == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
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


def test_worker_after_worker_dying_stops_the_run():
    with Workers(act, 1, timeout_s=20) as pool, pytest.raises(WorkerError, match="exit code -11"):
        list(pool.run(["crash"] * 20))


def test_no_task_is_no_work():
    with Workers(act, 2) as pool:
        assert list(pool.run([])) == []
