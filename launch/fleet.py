"""One command on each of several hosts, as one job: it ends where the first one fails.

Each host's command is the child of a ``launch.leash`` there, which is reached through ssh or a
stand-in. Lines of all hosts come back one by one, each after its host's name in brackets.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from launch.failures import LOST_PEER
from launch.processes import FORWARDED, SAVE_S, Outcome, note
from ovtrain.schema.status import REQUEUE

GRACE_S = 5.0
"""For the ranks of other hosts, once one has failed: they wait for it and cannot save."""
SETTLE_S = 2.0
"""A host that lost a peer leaves that one's so much time to say why it is gone."""
LOST_S = 15.0
"""A host that does not tell that its command has ended is given up so much later."""


@dataclass(frozen=True)
class Job:
    """``call`` starts a leash on the host; what it is told first: the other fields."""

    host: str
    call: list[str]
    command: list[str]
    env: Mapping[str, str]
    cwd: str

    def told(self) -> str:
        return json.dumps({"command": self.command, "env": dict(self.env), "cwd": self.cwd})


@dataclass
class Member:
    """A host's leash while it runs, and how it ended. ``asked``: it was told to end. ``failed_at``:
    when it first spoke of an error, or else ended with one. ``lost_peer``: it said that another
    rank was gone."""

    job: Job
    process: subprocess.Popen[str]
    outcome: Outcome = field(default_factory=Outcome)
    running: bool = True
    asked: bool = False
    failed_at: float = float("inf")
    lost_peer: bool = False

    def heard(self, line: str) -> None:
        note(self.outcome, line)
        self.lost_peer |= LOST_PEER.search(line) is not None
        if self.outcome.error:
            self.failed_at = min(self.failed_at, time.monotonic())

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):  # it is gone, which its end will tell
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def ended(self) -> None:
        self.running = False
        status = self.process.wait()
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        self.outcome.status = 128 - status if status < 0 else status
        if self.failed:
            self.failed_at = min(self.failed_at, time.monotonic())

    @property
    def failed(self) -> bool:
        return not self.running and self.outcome.status not in (0, REQUEUE)

    @property
    def is_consequence(self) -> bool:
        """It ended as it was told to, or since others were gone."""
        spoke = self.outcome.error or self.outcome.root_status is not None
        return self.lost_peer or (self.asked and not spoke)


Event = tuple[int, str | None]
"""(number of the member, a line of its output or None at its end), or (SIGNAL, None)."""
SIGNAL = -1


class Fleet:
    """``show`` gets every line."""

    def __init__(self, jobs: Sequence[Job], show: Callable[[str], None]) -> None:
        # A signal's handler may interrupt a put with one of its own: a SimpleQueue allows for that.
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._show = show
        self._end_at = self._deadline = float("inf")
        self.received: int | None = None
        """The first signal that this process got."""
        self.members = [Member(job, _started(job)) for job in jobs]

    def run(self) -> Outcome:
        """To the end of all hosts' commands; how the job ended. ``error`` names the host."""
        with self._forwarding():
            for number, member in enumerate(self.members):
                threading.Thread(target=self._read, args=[number, member], daemon=True).start()
                member.tell(member.job.told())
            try:
                while any(member.running for member in self.members):
                    self._step()
            finally:
                self._kill()
        return self._outcome()

    def end(self, seconds: float) -> None:
        """All commands get SIGTERM, and SIGKILL ``seconds`` later."""
        for member in self.members:
            if member.running:
                member.asked = True
                member.tell(f"end {seconds:g}")
        self._deadline = min(self._deadline, time.monotonic() + seconds + LOST_S)

    def _read(self, number: int, member: Member) -> None:
        assert member.process.stdout is not None
        with member.process.stdout as lines:
            for line in lines:
                self._events.put((number, line.rstrip("\n")))
        self._events.put((number, None))

    def _step(self) -> None:
        if time.monotonic() > self._end_at:
            self._end_at = float("inf")
            self.end(GRACE_S)
        try:
            number, line = self._events.get(timeout=0.2)
        except queue.Empty:
            if time.monotonic() > self._deadline:
                self._kill()
            return
        member = self.members[number]
        if number == SIGNAL:
            self.end(SAVE_S)
        elif line is None:
            self._ended(member)
        else:
            member.heard(line)
            self._show(f"[{member.job.host}] {line}")

    def _ended(self, member: Member) -> None:
        member.ended()
        if member.failed and self.received is None:
            wait = SETTLE_S if member.lost_peer else 0.0
            self._end_at = min(self._end_at, time.monotonic() + wait)
        elif member.outcome.status == REQUEUE and self.received is None:
            self.end(SAVE_S)  # its ranks saved, together with all others

    def _kill(self) -> None:
        for member in self.members:
            if member.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(member.process.pid, signal.SIGKILL)

    def _outcome(self) -> Outcome:
        saved = any(m.outcome.saved or m.outcome.status == REQUEUE for m in self.members)
        if self.received is not None:
            return Outcome(REQUEUE if saved else 128 + self.received)
        failed = [member for member in self.members if member.failed]
        if not failed:
            return Outcome(REQUEUE if saved else 0)
        first = min(failed, key=lambda member: (member.is_consequence, member.failed_at))
        outcome, own = first.outcome, first.outcome.root_status
        if own is not None:
            outcome.status = own if own > 0 else 128 - own
        outcome.error = f"host {first.job.host}: {outcome.error or _last_words(outcome)}"
        return outcome

    @contextmanager
    def _forwarding(self) -> Generator[None]:
        """Signals go on once, as SIGTERM: training answers by saving."""

        def forward(number: int, _frame: FrameType | None) -> None:
            if self.received is None:
                self.received = number
                self._events.put((SIGNAL, None))

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _last_words(outcome: Outcome) -> str:
    if outcome.root_status is not None and outcome.root_status < 0:
        return f"a rank was ended by signal {-outcome.root_status}"
    said = next((line for line in reversed(outcome.last) if line.strip()), "")
    return f"ended with status {outcome.status}" + (f": {said.strip()}" if said else "")


def _started(job: Job) -> subprocess.Popen[str]:
    """It outlives this process, whose end closes its input: what it runs then saves first."""
    return subprocess.Popen(
        job.call,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
