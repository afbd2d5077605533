"""A pool of processes for media files: what they do to a decoder costs the file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from types import TracebackType
from typing import Generic, TypeVar

from av.error import FFmpegError

from ovtrain.schema.errors import OvtrainError
from ovtrain.schema.isolated import DIED, Child, Failure

Task = TypeVar("Task")
Result = TypeVar("Result")

BAD_FILE = (OvtrainError, FFmpegError, OSError, EOFError)
"""What a bad file may raise. Anything else is a defect: its traceback ends the worker."""
MAX_DEATHS = 5
"""Workers that may be killed, or end by a defect, one after the other before the run stops."""


class WorkerError(OvtrainError):
    """Worker after worker dies: a defect or a lack of memory, not a bad file."""


class Workers(Generic[Task, Result]):
    """``workers`` spawned processes that run ``work``; a task may take ``timeout_s`` seconds."""

    def __init__(
        self, work: Callable[[Task], Result], workers: int, timeout_s: float = 300.0
    ) -> None:
        self._children = [Child(work, BAD_FILE, timeout_s) for _ in range(max(workers, 1))]
        self._deaths = 0

    def __enter__(self) -> Workers[Task, Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self._children:
            child.stop()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result | Failure]]:
        """Yield (index of the task, its result or Failure) as tasks end, in any order.

        Raises WorkerError when worker after worker dies.
        """
        left = iter(range(len(tasks)))
        children = self._children[: len(tasks)]
        for child in children:
            child.start()
        busy: dict[Child, int] = {}

        def assign(child: Child) -> None:
            task = next(left, None)
            if task is not None:
                child.send(tasks[task])
                busy[child] = task

        for child in children:
            assign(child)
        while busy:
            soonest = max(min(child.deadline for child in busy) - time.monotonic(), 0)
            ready = wait([child.start() for child in busy], soonest)
            for child in list(busy):
                if child.start() in ready or time.monotonic() >= child.deadline:
                    done, answer = busy.pop(child), child.receive()
                    self._count_deaths(answer)
                    assign(child)
                    yield done, answer

    def _count_deaths(self, answer: Result | Failure) -> None:
        if not (isinstance(answer, Failure) and (answer.lost or answer.defect)):
            self._deaths = 0  # what a file did to a decoder is the file's
            return
        self._deaths += 1
        if self._deaths == MAX_DEATHS:
            raise WorkerError(
                f"{MAX_DEATHS} worker processes died one after the other",
                f"the last with {answer.reason.removeprefix(DIED).strip(' ()')}",
                fix="exit code -9 is a lack of memory: lower workers; otherwise try the files "
                "of this folder in smaller groups",
            )
