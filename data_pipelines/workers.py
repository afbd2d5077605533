"""Processes that survive what media files do to decoders: crashes and hangs cost one file.

Each worker handles one task at a time, so a death or a timeout is the fault of a known task; the
worker is replaced and the run goes on. ``concurrent.futures`` cannot do this: one dead worker
breaks its whole pool without telling whose fault it was.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, TypeVar

from av.error import FFmpegError

from ovtrain.schema.errors import OvtrainError

Task = TypeVar("Task")
Result = TypeVar("Result")

BAD_FILE = (OvtrainError, FFmpegError, OSError, EOFError)
"""What a bad file may raise. Anything else is a defect: its traceback ends the worker."""
MAX_DEATHS = 5
"""Workers that may die one after the other before the fault is ours and the run stops."""


class WorkerError(OvtrainError):
    """Worker after worker dies: a defect or a lack of memory, not a bad file."""


@dataclass(frozen=True)
class Failure:
    """Why a task has no result: a category, then details in parentheses."""

    reason: str


def reason_of(error: BaseException) -> str:
    """The reason without the file's name, which stands beside it in reports."""
    if isinstance(error, OvtrainError):
        return error.found or error.where
    return f"unreadable ({error})"


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Body of a worker: answer tasks until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer = work(task)
        except BAD_FILE as error:
            answer = Failure(reason_of(error))
        connection.send(answer)


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    task: int = -1
    deadline: float = field(default=float("inf"))

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Workers(Generic[Task, Result]):
    """``workers`` spawned processes that run ``work``; a task may take ``timeout_s`` seconds."""

    def __init__(
        self, work: Callable[[Task], Result], workers: int, timeout_s: float = 300.0
    ) -> None:
        self._work, self._count, self._timeout = work, max(workers, 1), timeout_s
        self._context = get_context("spawn")
        self._workers: list[_Worker] = []
        self._deaths = 0

    def __enter__(self) -> Workers[Task, Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._work), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result | Failure]]:
        """Yield (index of the task, its result or Failure) as tasks end, in any order.

        Raises WorkerError when worker after worker dies.
        """
        left = iter(range(len(tasks)))
        while len(self._workers) < min(self._count, len(tasks)):
            self._workers.append(self._start())
        busy = [w for w in self._workers if self._assign(w, left, tasks)]
        while busy:
            soonest = max(min(w.deadline for w in busy) - time.monotonic(), 0)
            ready = wait([w.connection for w in busy], soonest)
            for worker in list(busy):
                if worker.connection in ready or time.monotonic() >= worker.deadline:
                    busy.remove(worker)
                    done, answer = worker.task, self._receive(worker, worker.connection in ready)
                    worker = self._revive(worker)
                    if self._assign(worker, left, tasks):
                        busy.append(worker)
                    yield done, answer

    def _assign(self, worker: _Worker, left: Iterator[int], tasks: Sequence[Task]) -> bool:
        """Hand the next task over; False when none is left."""
        worker.task = next(left, -1)
        if worker.task < 0:
            return False
        worker.deadline = time.monotonic() + self._timeout
        with suppress(BrokenPipeError):  # it died while idle: reading from it reports that
            worker.connection.send(tasks[worker.task])
        return True

    def _receive(self, worker: _Worker, answered: bool) -> Result | Failure:
        if not answered:
            worker.stop()
            return Failure(f"timed out (more than {self._timeout:g} s)")
        try:
            answer = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join(5)
            code = worker.process.exitcode
            worker.stop()
            self._deaths += 1
            if self._deaths == MAX_DEATHS:
                raise WorkerError(
                    f"{MAX_DEATHS} worker processes died one after the other",
                    f"the last with exit code {code}",
                    fix="exit code -9 is a lack of memory: lower workers; otherwise try the files "
                    "of this folder in smaller groups",
                ) from None
            return Failure(f"worker process died (exit code {code})")
        self._deaths = 0
        return answer

    def _revive(self, worker: _Worker) -> _Worker:
        """The worker itself, or a fresh one in its place when it was stopped."""
        if not worker.connection.closed:
            return worker
        fresh = self._start()
        self._workers[self._workers.index(worker)] = fresh
        return fresh
