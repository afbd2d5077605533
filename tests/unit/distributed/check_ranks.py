"""Ranks of several health checks at once, some of them sick: ``python check_ranks.py FOLDER``.

Every rank is a fork of this process, which has imported torch, and has a host of its own. Writes
``{scenario}.json``, the check's report, and ``status.json``: {scenario: [status of each rank]},
negative where a signal ended it.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from ovtrain.distributed.health_check import local, session
from tests.helpers.ports import free_port

Values = dict[str, float]


def even(_: local.Place) -> Values:
    return {"gemm_tflops": 10.0}


def slow(place: local.Place) -> Values:
    return {"gemm_tflops": 2.0 if place.rank == 1 else 10.0}


def wrong(place: local.Place) -> Values:
    """One number of a product is wrong, as a sick device would have it."""
    if place.rank == 2:
        a = torch.ones(4, 4)
        product = a @ a
        product[1, 2] += 1
        local.check_product(a, a, product)
    return {}


def stopped(place: local.Place) -> Values:
    if place.rank == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)
    return {}


def killed_later(place: local.Place) -> Values:
    """While the ranks meet, or measure their links."""
    if place.rank == 1:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return {}


def broken(place: local.Place) -> Values:
    if place.rank == 1:
        raise RuntimeError("CUDA error: an illegal memory access\nhints")
    return {}


SCENARIOS = {
    "sick": (4, {"product of matrices": slow, "copy": wrong, "disk": stopped}),
    "killed": (3, {"product of matrices": even, "disk": killed_later}),
    "broken": (2, {"product of matrices": broken}),
    "sound": (3, local.LOCAL),
}


def rank(folder: Path, name: str, number: int, size: int, port: int) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(size), "MASTER_PORT": str(port)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    place = local.Place(number, size, f"n{number}", torch.device("cpu"), folder, 0.02)
    limits = session.Limits(timeout_s=5, share=0.5 if name == "sick" else 0.01)
    os._exit(session.run_check(place, limits, folder / f"{name}.json", SCENARIOS[name][1]))


def run(folder: Path) -> dict[str, list[int]]:
    children: dict[str, list[int]] = {}
    for name, (size, _) in SCENARIOS.items():
        port = free_port()
        for number in range(size):
            if child := os.fork():
                children.setdefault(name, []).append(child)
            else:
                rank(folder, name, number, size, port)
    deadline = time.monotonic() + 40
    status: dict[str, list[int]] = {}
    for name, of_name in children.items():
        status[name] = [finish(child, deadline) for child in of_name]
    return status


def finish(child: int, deadline: float) -> int:
    """Ranks are asked in order: when a stopped one's turn comes, the others are through."""
    while time.monotonic() < deadline:
        done, code = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if done and os.WIFSTOPPED(code):
            break
        if done:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    session.SILENT_S = 2.0
    out = Path(sys.argv[1])
    (out / "status.json").write_text(json.dumps(run(out)))
