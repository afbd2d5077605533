"""The ranks of one node: start them, pass signals on, end them all when one fails, name that one.

    python -m launch.node CONFIG.yaml [--check]                # in a SLURM step: places from SLURM
    python -m launch.node CONFIG.yaml --nodes 2 --node-rank 1 --nproc 8 --master 10.0.0.1:29500

In a step of one task per node each task starts that node's ranks, in one of a task per GPU each
starts one. The rendezvous is MASTER_ADDR and MASTER_PORT. ``--check`` measures the node's devices
and links (``ovtrain.check``) instead of training.

A rank that fails ends the others at once, on other nodes too: nodes tell one another through files
in ``{run.out}/logs/failures``, since a rank that waits for a dead one in a collective notices only
when its network does. All that a rank prints is in ``logs/rank-00003.out``. Shown are rank 0's
lines and the others' log lines, but no tracebacks: when a rank dies, all of them print one.

Exit status: 0 trained to the end; 75 stopped by a signal (SIGTERM, SIGUSR1); 2 an error of the
input; 76 ``--check`` found a bad node; 1 a rank failed.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO

from launch.failures import TRACEBACK, Failure, failures, node_name, record_failure
from launch.places import Place, place_of, rank_environment
from launch.processes import SAVE_S, module_command
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.schema.errors import exit_status
from ovtrain.schema.isolated import die_with
from ovtrain.schema.status import REQUEUE, UNHEALTHY

POLITE = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
KEPT_LINES = 200
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d ")
"""How the lines of ``observability.logger`` begin."""
VERDICT_S, CHECK_S = 20.0, 300.0
"""For the other ranks of a node once one has ended a check, and for a whole check."""
TOGETHER_S = 2.0
"""For the other ranks of a node once one has ended because a step hung."""
LOOK_S = 0.5
"""Between two looks for failures of other nodes."""


def _before_exec(parent: int) -> None:
    """A rank ends with its launcher, and does not die of a warning before it can answer it: SLURM
    sends USR1 to every process of a step, and a start takes a while."""
    die_with(parent)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class Rank:
    """A rank's process and the thread that reads what it prints."""

    def __init__(
        self, number: int, command: Sequence[str], env: Mapping[str, str], log: Path
    ) -> None:
        self.number = number
        self.last: deque[str] = deque(maxlen=KEPT_LINES)
        self.process = subprocess.Popen(
            list(command), env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
            preexec_fn=partial(_before_exec, os.getpid()),
        )  # fmt: skip
        self._log = log

    def follow(self, node: Node) -> None:
        """Show and keep its lines, then say how it ended. Runs in a thread."""
        assert self.process.stdout is not None
        with open(self._log, "ab", buffering=0) as log, self.process.stdout as lines:
            waiter = threading.Thread(target=self._wait, args=(node,), daemon=True)
            waiter.start()
            shown = self.number == 0
            for line in lines:
                with suppress(OSError):  # what is shown tells of a full disk, too
                    log.write(line.encode(errors="replace"))
                self.last.append(line.rstrip("\n"))
                if LOG_LINE.match(line):
                    shown = self.number == 0
                    node.show(line)
                    continue
                shown &= TRACEBACK not in line
                if shown:
                    node.show(line)
            waiter.join()

    def _wait(self, node: Node) -> None:
        # Children of a rank may hold its pipe open for long after its death.
        node.ended.put((self, self.process.wait()))

    def signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:  # it ended in between
                return


class Node:
    """Supervises the ranks of ``place``; ``out``: the run directory; ``attempt``: what this start
    of the job is called on all nodes, "" where nodes tell one another nothing."""

    def __init__(self, place: Place, out: Path, attempt: str, shown: IO[str]) -> None:
        self.place, self.out, self.attempt, self._shown = place, out, attempt, shown
        self.ended: SimpleQueue[tuple[Rank, int]] = SimpleQueue()
        self.ranks: list[Rank] = []
        self._quiet = False
        self._asked = False
        self._check = False
        self._deadline = float("inf")

    def run(self, command: Sequence[str], env: Mapping[str, str], *, check: bool = False) -> int:
        """Start all ranks, wait for them all; the exit status of the module's docstring. A
        ``check`` ends with its verdict whatever hangs."""
        self._check = check
        self._deadline = time.monotonic() + CHECK_S if check else float("inf")
        logs = self.out / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for number in POLITE:
            signal.signal(number, self._ask)
        for i in range(self.place.first, self.place.first + self.place.count):
            own = {**env, **self.place.environment(i)}
            self.ranks.append(Rank(i, command, own, logs / f"rank-{i:05d}.out"))
        readers = [
            threading.Thread(target=rank.follow, args=(self,), daemon=True) for rank in self.ranks
        ]
        for reader in readers:
            reader.start()
        try:
            status = self._supervise()
        finally:
            for number in POLITE:  # what comes now would end the interpreter while it ends
                signal.signal(number, signal.SIG_IGN)
            for rank in self.ranks:
                rank.signal(signal.SIGKILL)
        for reader in readers:
            reader.join(timeout=5)
        return status

    def show(self, line: str) -> None:
        """Of a rank; nothing once one has failed."""
        if not self._quiet:
            self._shown.write(line if line.endswith("\n") else line + "\n")
            self._shown.flush()

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        """A signal: have the ranks save, once. Later ones change nothing."""
        if not self._asked:
            self._asked = True
            self._deadline = time.monotonic() + SAVE_S
            for rank in self.ranks:
                rank.signal(signal.SIGTERM)

    def _supervise(self) -> int:
        left, status = len(self.ranks), 0
        while left:
            try:
                rank, ended = self.ended.get(timeout=LOOK_S)
            except Empty:
                if time.monotonic() > self._deadline:
                    return UNHEALTHY if self._check else self._too_late()
                if self._failed_elsewhere():
                    self._quiet = True
                    return 1
                continue
            left -= 1
            if ended in (0, UNHEALTHY) or (ended == REQUEUE and self._asked):
                status = max(status, ended)
                if ended == UNHEALTHY:  # one that hangs does not hear of the verdict
                    self._deadline = min(self._deadline, time.monotonic() + VERDICT_S)
            else:
                return self._failed(rank, ended)
        return status

    def _failed(self, rank: Rank, status: int) -> int:
        """Keep what is known of the first failure on this node."""
        self._quiet = True
        time.sleep(0.2)  # its last lines are on their way
        late = self._late() if status == REQUEUE else []
        if self._failed_elsewhere():
            return REQUEUE if self._asked else 1
        failure = Failure.of_rank(rank.number, node_name(os.environ), status, list(rank.last))
        if late:
            more = (
                f"rank {', '.join(map(str, late))} did not end, and may be what the others wait for"
            )
            failure = replace(failure, why=f"{failure.why}; {more}")
        if self._asked and failure.kind != "input_error":
            failure = replace(failure, kind="stopped")
        if self.attempt:
            record_failure(self.out, self.attempt, failure)
        else:
            print("\n".join(failure.lines()), file=self._shown, flush=True)
        return {"input_error": 2, "stopped": REQUEUE}.get(failure.kind, 1)

    def _late(self) -> list[int]:
        """A step that hung ends all ranks at about the same time, or all have saved: who stays
        longer than that is stuck."""
        ends = time.monotonic() + TOGETHER_S
        while time.monotonic() < ends and any(r.process.poll() is None for r in self.ranks):
            time.sleep(0.02)
        return [r.number for r in self.ranks if r.process.poll() is None]

    def _failed_elsewhere(self) -> bool:
        return bool(self.attempt) and bool(failures(self.out, self.attempt))

    def _too_late(self) -> int:
        slow = ", ".join(str(rank.number) for rank in self.ranks if rank.process.poll() is None)
        why = f"not ended {SAVE_S} s after the signal"
        print(f"error: rank {slow} on {node_name(os.environ)}: {why}", file=self._shown, flush=True)
        return 1


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launch.node", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--check", action="store_true")
    for name in ("nodes", "node-rank", "nproc"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--master", metavar="ADDR:PORT")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    given = _parse(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        place = place_of(given, os.environ)
        out = Path(load(TrainConfig, given.config).run.out)
        if given.check:
            command = module_command("ovtrain.check", "--out", str(out / "logs" / "health.json"))
        else:
            command = module_command("ovtrain.train", given.config)
        node = Node(place, out, os.environ.get("OVTRAIN_ATTEMPT", ""), sys.stdout)
        return node.run(command, rank_environment(place, os.environ), check=given.check)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
