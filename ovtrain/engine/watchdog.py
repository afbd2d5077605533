"""A step that hangs leaves the stacks of all threads behind, and may end the process.

When a step takes longer than its limit, each rank writes where its threads stand to
``{run.out}/logs/stacks-{rank:05d}.txt``, again after as long a time, and its log names that file.
After twice the limit the process may end with status 75, so that a scheduler starts it again.

A thread that holds Python's lock writes the stacks: nothing runs meanwhile, since to walk the
frames of a thread that runs can end the process (faulthandler's own timer does so). Where a call in
C hangs with the lock held, that thread waits too; half a limit later faulthandler's timer writes
the stacks after all, of threads that now stand still. The end (``ExitTimer``) is C's as well.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from ovtrain.engine.exit_timer import ExitTimer
from ovtrain.schema.status import REQUEUE

HEADER = 240
"""Bytes of the line above the stacks. It is written before they are, over and over."""
SLACK = 0.02
"""Of a limit: a timer armed so recently is not armed again, since that starts a thread."""
GRACE, LEAST_GRACE = 0.5, 0.25
"""Of a limit, and seconds: how much later faulthandler's timer writes what the thread did not."""
INFINITE = float("inf")
log = logging.getLogger(__name__)


class Watchdog:
    """One per process: faulthandler has one timer. ``timeout_s``: of a step, 0 = no watchdog;
    ``end``: leave with status 75 after twice the limit. ``tell``: called once for each limit that
    passes, by a thread. Nothing is watched before the first ``beat``, or the first ``allowing``."""

    def __init__(
        self,
        logs: Path,
        rank: int,
        timeout_s: float,
        *,
        end: bool,
        tell: Callable[[str], None] = log.warning,
    ) -> None:
        self.path, self.timeout_s, self._say = logs / f"stacks-{rank:05d}.txt", timeout_s, tell
        self._what, self._limit = "", 0.0
        self._armed_at = self._deadline = INFINITE
        self._told = False
        self._place = f"rank {rank} on {platform.node()}"
        if not timeout_s:
            return
        logs.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        self._base = os.lseek(self._file, 0, os.SEEK_END)
        os.lseek(self._file, HEADER, os.SEEK_CUR)
        self._exit = ExitTimer(REQUEUE) if end else None
        self._changed = threading.Condition()
        self._open = True
        self._teller = threading.Thread(target=self._tell, name="watchdog", daemon=True)
        self._teller.start()

    def beat(self, step: int) -> None:
        """Step ``step`` begins; its time starts."""
        self._arm(f"step {step}", self.timeout_s)

    @contextmanager
    def allowing(self, what: str, seconds: float) -> Generator[None]:
        """``what`` (saving, the first step) may take ``seconds`` instead; afterwards what was under
        way before has its whole time again."""
        before = self._what, self._limit
        self._arm(what, seconds)
        try:
            yield
        finally:
            if before[1]:
                self._arm(*before)
            else:
                self._disarm()

    def close(self) -> None:
        """End of the watch; a file without stacks goes."""
        if not self.timeout_s or not self._open:
            return
        self._disarm()
        with self._changed:
            self._open = False
            self._changed.notify()
        self._teller.join()
        if self._exit is not None:
            self._exit.close()
        if self._dumped():
            log.warning("stacks of steps that took too long are in %s", self.path)
        else:
            os.ftruncate(self._file, self._base)
        os.close(self._file)
        if not self.path.stat().st_size:
            self.path.unlink()

    def _arm(self, what: str, limit: float) -> None:
        if not self.timeout_s:
            return
        now = time.monotonic()
        with self._changed:
            fresh = limit == self._limit and now - self._armed_at < SLACK * limit
            self._what, self._limit, self._deadline = what, limit, now + limit
            self._told = False
            self._write_header()
            if not fresh:
                self._armed_at = now
                self._changed.notify()  # the limit may be a nearer one
                self._dump_without_lock_after(limit)
        if not fresh and self._exit is not None:
            self._exit.arm(2 * limit)

    def _disarm(self) -> None:
        if not self.timeout_s:
            return
        if self._exit is not None:
            self._exit.disarm()
        with self._changed:
            faulthandler.cancel_dump_traceback_later()
            self._what, self._limit = "", 0.0
            self._armed_at = self._deadline = INFINITE

    def _dumped(self) -> bool:
        """Whether stacks follow the present header; the file's position is moved by them alone."""
        return os.lseek(self._file, 0, os.SEEK_CUR) != self._base + HEADER

    def _write_header(self) -> None:
        if self._dumped():
            self._base = os.lseek(self._file, 0, os.SEEK_CUR)
            os.lseek(self._file, HEADER, os.SEEK_CUR)
        began = time.strftime("%Y-%m-%d %H:%M:%S")
        what = f"process {os.getpid()}: {self._what} began at {began}, limit {self._limit:g} s"
        line = f"=== {self._place}, {what}"
        os.pwrite(self._file, line.encode()[: HEADER - 1].ljust(HEADER - 1) + b"\n", self._base)

    def _tell(self) -> None:
        """A thread: stacks for each limit that passes, a line in the log for the first."""
        while True:
            with self._changed:
                if not self._open:
                    return
                left = self._deadline - time.monotonic()
                if left > 0:
                    self._changed.wait(None if self._deadline == INFINITE else left)
                    continue
                message = "" if self._told else self._message()
                self._told = True
                self._dump()
            if message:
                self._say(message)

    def _dump(self) -> None:
        faulthandler.dump_traceback(self._file)
        self._deadline = time.monotonic() + self._limit
        self._armed_at = -INFINITE  # the next step arms again
        self._dump_without_lock_after(self._limit)

    def _dump_without_lock_after(self, limit: float) -> None:
        seconds = limit + max(GRACE * limit, LEAST_GRACE)
        faulthandler.dump_traceback_later(seconds, repeat=True, file=self._file)

    def _message(self) -> str:
        ends = f"; after {2 * self._limit:g} s this process ends" if self._exit is not None else ""
        return (
            f"{self._place}: {self._what} takes longer than "
            f"{self._limit:g} s; where its threads stand is in {self.path}{ends}"
        )
