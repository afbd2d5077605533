"""Workers that make samples: processes that may die, or this one.

What a damaged file does to a decoder costs the sample: a worker that crashes, hangs or takes more
memory than it may is killed, its sample is named, and a new worker takes its place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from av.error import FFmpegError

from ovtrain.config.data import DataConfig
from ovtrain.data.making import Made, Maker, SampleTask
from ovtrain.schema.errors import MediaError
from ovtrain.schema.isolated import Child, Failure, reason_of

LIFETIME = 10_000
"""Samples of a worker before another takes its place: decoders lose a hundred bytes with each clip,
which are megabytes an hour; a new worker is half a second."""
BAD_SAMPLE = (MediaError, FFmpegError)
"""What a bad sample may raise; anything else is a defect, whose traceback ends the worker."""


Answer = Made | Failure


class Samples(Protocol):
    """What makes a loader's samples."""

    def submit(self, tasks: Sequence[SampleTask]) -> list[Callable[[], Answer]]:
        """Have samples of one source made; for each, in order, a call that waits for it."""
        ...

    def close(self) -> None:
        """Stop; samples under way are lost."""
        ...


class SamplePool:
    """``data.workers`` processes, each behind a thread of this one; with 0 a thread does the work
    itself, and what kills a decoder kills the run."""

    def __init__(self, data: DataConfig, maker: Maker | None = None) -> None:
        self._data, self._maker = data, maker or Maker(data)
        self._threads = ThreadPoolExecutor(max(data.workers, 1), "samples")
        self._local = threading.local()
        self._children: list[Child] = []

    def submit(self, tasks: Sequence[SampleTask]) -> list[Callable[[], Answer]]:
        make = self._made if self._data.workers else self._made_here
        return [self._threads.submit(make, task).result for task in tasks]

    def _made_here(self, task: SampleTask) -> Answer:
        try:
            return self._maker(task)
        except BAD_SAMPLE as error:
            return Failure(reason_of(error))

    def _made(self, task: SampleTask) -> Answer:
        child = self._child()
        answer: Any = child.call(task)
        swollen = child.resident_mib() > self._data.worker_memory_mib / 2
        if swollen or child.tasks >= LIFETIME:
            child.stop()  # memory that grew over many samples is nobody's fault in particular
        return answer

    def _child(self) -> Child:
        if not hasattr(self._local, "child"):
            data = self._data
            child = Child(self._maker, BAD_SAMPLE, data.sample_timeout_s, data.worker_memory_mib)
            self._local.child = child
            self._children.append(child)
        return self._local.child

    def close(self) -> None:
        """End the workers; samples under way are lost."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in self._children:
            child.end()
        self._threads.shutdown()
        for child in self._children:
            child.stop(kill=True)
