"""Workers that make samples: processes that may die, or this one.

What a damaged file does to a decoder costs the sample: a worker that crashes, hangs or takes more
memory than it may is killed, its sample is named, and a new worker takes its place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from av.error import FFmpegError

from ovtrain.config.data import DataConfig
from ovtrain.data.clock import Clock
from ovtrain.data.decode.base import ImageDecoder
from ovtrain.data.making import Made, Maker, SampleTask
from ovtrain.schema.errors import MediaError
from ovtrain.schema.isolated import Child, Failure, reason_of

BAD_SAMPLE = (MediaError, FFmpegError)
"""What a bad sample may raise; anything else is a defect, whose traceback ends the worker."""


class SamplePool:
    """``data.workers`` processes, each behind a thread of this one; with 0 a thread does the work
    itself, and what kills a decoder kills the run."""

    def __init__(self, data: DataConfig, maker: Maker | None = None) -> None:
        self._data, self._maker = data, maker or Maker(data)
        self._threads = ThreadPoolExecutor(max(data.workers, 1), "samples")
        self._local = threading.local()
        self._children: list[Child] = []

    def submit(self, task: SampleTask) -> Future[Made | Failure]:
        return self._threads.submit(self._made if self._data.workers else self._made_here, task)

    def _made_here(self, task: SampleTask) -> Made | Failure:
        try:
            return self._maker(task)
        except BAD_SAMPLE as error:
            return Failure(reason_of(error))

    def _made(self, task: SampleTask) -> Made | Failure:
        child = self._child()
        answer: Any = child.call(task)
        if child.resident_mib() > self._data.worker_memory_mib / 2:
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


class DaliPictures:
    """Pictures of a step, decoded together: decoders such as DALI work on batches."""

    def __init__(self, data: DataConfig, decoder: ImageDecoder) -> None:
        self._maker, self._decoder = Maker(data), decoder
        self._thread = ThreadPoolExecutor(1, "pictures")

    def submit(self, tasks: list[SampleTask]) -> list[Callable[[], Made | Failure]]:
        together = self._thread.submit(self._make, tasks)
        return [lambda at=at: together.result()[at] for at in range(len(tasks))]

    def _make(self, tasks: list[SampleTask]) -> list[Made | Failure]:
        clocks = [Clock() for _ in tasks]
        read = [self._read(task, clock) for task, clock in zip(tasks, clocks, strict=True)]
        whole = [i for i, jpeg in enumerate(read) if isinstance(jpeg, bytes)]
        jpegs = [jpeg for jpeg in read if isinstance(jpeg, bytes)]
        began = time.perf_counter()
        decoded = self._decoder(jpegs, [tasks[i].where for i in whole])
        for i in whole:
            clocks[i].seconds["decode"] += (time.perf_counter() - began) / len(whole)
        found: list[Any] = list(read)
        for i, pixels in zip(whole, decoded, strict=True):
            if isinstance(pixels, MediaError):
                found[i] = Failure(reason_of(pixels))
            else:
                found[i] = self._maker.picture(tasks[i], pixels, clocks[i])
        return found

    def _read(self, task: SampleTask, clock: Clock) -> bytes | Failure:
        try:
            return self._maker.picture_bytes(task, clock)
        except MediaError as error:
            return Failure(reason_of(error))

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
