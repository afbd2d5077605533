"""Training on this machine: torchrun as a child, its output relayed, its first error shown once.

Everything is kept in ``{run.out}/logs/launch.log``. After an ``error:`` line the launcher's own
report of failed children says nothing new, so it stays in that log.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import click

from launch.processes import ERROR, Outcome, run_process, torchrun_command, worker_env
from ovtrain.schema.status import REQUEUE

DEATH_SIGNAL = re.compile(r"Received \d+ death signal")
LAUNCHER = re.compile(r"^(?:[EWI]\d{4} |Traceback \(most recent call last\))")


def train_command(config: Path, nproc: int) -> list[str]:
    """The torchrun command line of one training run."""
    return torchrun_command(nproc, "ovtrain.train", str(config))


def run_training(config: Path, out: Path, nproc: int) -> int:
    """Train ``config`` on ``nproc`` processes of this machine; returns the exit status."""
    return run_ranks(train_command(config, nproc), out, nproc, to_stderr=True)


def run_ranks(command: Sequence[str], out: Path, nproc: int, *, to_stderr: bool) -> int:
    """Run a torchrun command line, its output in ``out/logs/launch.log``, too; the exit status."""
    log = out / "logs" / "launch.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as handle:
        relay = Relay(handle, lambda line: click.echo(line, err=to_stderr))
        outcome = run_process(command, worker_env(nproc), relay)
    if outcome.status:
        click.echo(failure(outcome, log), err=True)
    return outcome.status


class Relay:
    """A line handler: all lines to ``log``; to ``show`` all but errors and what follows them."""

    def __init__(self, log: IO[str], show: Callable[[str], None]) -> None:
        self._log, self._show = log, show
        self._failed = self._aftermath = False

    def __call__(self, line: str) -> None:
        self._log.write(line + "\n")
        self._log.flush()
        self._failed |= DEATH_SIGNAL.search(line) is not None
        if ERROR.match(line):
            self._failed = True
            return
        self._aftermath |= self._failed and LAUNCHER.match(line) is not None
        if not self._aftermath:
            self._show(line)


def failure(outcome: Outcome, log: Path) -> str:
    """One line on why a job failed, and where its output is."""
    rank = f" (first failing rank: {outcome.rank})" if outcome.rank is not None else ""
    if outcome.error:
        return f"error: {outcome.error}{rank}\n  log: {log}"
    if outcome.status == REQUEUE:
        return f"stopped; the same command resumes; log: {log}"
    if outcome.status > 128:
        number = outcome.status - 128
        return f"ended by signal {number}{rank}, unsaved since the newest checkpoint; log: {log}"
    return f"error: the job ended with status {outcome.status}{rank}; log: {log}"
