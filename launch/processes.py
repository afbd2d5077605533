"""Child processes: jobs by module name, in a process group of their own, signals forwarded.

A job ends with status 2 and one ``error: ...`` line when its input is at fault; ``run_process``
collects that line, so that a caller can show it once, whatever number of ranks printed it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType

from ovtrain.schema.isolated import die_with
from ovtrain.schema.status import REQUEUE, SAVED

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
MEANS_SAVE = (signal.SIGINT, signal.SIGUSR1)
ERROR = re.compile(r"^(?:\[[^\]]*\]:?\s*)?error: (?P<text>.+)")
ROOT_CAUSE = "Root Cause"
ROOT_EXIT = re.compile(r"^\s*exitcode\s*:\s*(?P<status>-?\d+)")
ROOT_RANK = re.compile(r"^\s*rank\s*:\s*(?P<rank>\d+) ")
KEPT_LINES = 20
SAVE_S = 300
"""Seconds that ranks have for the step in flight and their last save, once they were signalled."""


@dataclass
class Outcome:
    """How a child ended: its exit status, its ``error:`` text, its last lines; under torchrun the
    first failing rank and that rank's status, read from the "Root Cause" part of its report;
    ``saved``: rank 0 said that it saved after a signal."""

    status: int = 0
    error: str = ""
    rank: int | None = None
    root_status: int | None = None
    in_root_cause: bool = False
    saved: bool = False
    last: deque[str] = field(default_factory=lambda: deque[str](maxlen=KEPT_LINES))


def module_command(module: str, *arguments: str) -> list[str]:
    """Run a module by name with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def torchrun_command(nproc: int, module: str, *arguments: str) -> list[str]:
    """``--standalone`` finds a free rendezvous port, so several at once do not collide."""
    ranks = ("--standalone", "--nproc-per-node", str(nproc))
    return module_command("torch.distributed.run", *ranks, "-m", module, *arguments)


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_env(nproc: int, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of ``nproc`` ranks: cores shared out, lines unbuffered; set values stay."""
    made = dict(os.environ if env is None else env)
    made.setdefault("OMP_NUM_THREADS", str(max(cores() // nproc, 1)))
    made.setdefault("PYTHONUNBUFFERED", "1")
    # torchrun's own 30 s, after which it kills its ranks, may be less than a save takes.
    made.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVE_S))
    return made


def run_process(
    command: Sequence[str], env: Mapping[str, str], on_line: Callable[[str], None]
) -> Outcome:
    """Run ``command`` to its end; every line of its output goes to ``on_line``.

    Returns 75 when it saved after a forwarded signal and 128 + signal when it could not, the first
    failing rank's status under torchrun (whose own is always 1), else the child's own.
    """
    outcome = Outcome()
    child = subprocess.Popen(
        list(command),
        env=dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=partial(die_with, os.getpid()),
    )
    assert child.stdout is not None
    with _forwarding(child) as received, child.stdout as lines:
        try:
            for line in lines:
                line = line.rstrip("\n")
                note(outcome, line)
                on_line(line)
            outcome.status = child.wait()
        finally:
            _end_group(child)
    if outcome.status and outcome.root_status is not None:
        outcome.status = outcome.root_status
    if outcome.status < 0:
        outcome.status = 128 - outcome.status
    if received:
        saved = outcome.saved or outcome.status == REQUEUE
        outcome.status = REQUEUE if saved else 128 + received[0]
    return outcome


def note(outcome: Outcome, line: str) -> None:
    """Take from a line of the child's output what it says of its end."""
    outcome.last.append(line)
    outcome.saved |= line.endswith(SAVED)
    if not outcome.error and (found := ERROR.match(line)):
        outcome.error = found["text"]
    outcome.in_root_cause |= line.startswith(ROOT_CAUSE)
    if outcome.in_root_cause and (found := ROOT_RANK.match(line)):
        outcome.rank = int(found["rank"])
    if outcome.in_root_cause and (found := ROOT_EXIT.match(line)):
        outcome.root_status = int(found["status"])


@contextmanager
def _forwarding(child: subprocess.Popen[str]) -> Generator[list[int]]:
    """Pass signals on to the child's group. torchrun ends its ranks itself, after a grace time.

    An interrupt and a warning (SIGUSR1, which torchrun would die of) go on as SIGTERM, which
    training answers by saving first. Later ones do not go on: torchrun would not wait for the save.
    """
    received: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        polite = signal.SIGTERM if number in MEANS_SAVE else signal.Signals(number)
        if len(received) == 1:
            _signal_group(child, polite)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal_group(child: subprocess.Popen[str], number: signal.Signals) -> None:
    if child.poll() is None:
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:  # it ended in between
            return


def _end_group(child: subprocess.Popen[str]) -> None:
    """Leave no process behind when the caller was thrown out of the loop."""
    if child.poll() is None:
        _signal_group(child, signal.SIGTERM)
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            _signal_group(child, signal.SIGKILL)
            child.wait()
