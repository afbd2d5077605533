"""How long collectives hold a rank up: the time of its transfers and of waiting for other ranks.

Counted is what is exposed. A call on CPU tensors counts with its wall time, one on GPU tensors with
the time that it held up the stream that it was called on, taken by two CUDA events. An asynchronous
call counts with its start and with the ``wait`` on its result; what happens meanwhile, beside
computing, is not counted. Nothing here waits for a device: events are looked at when they are done.

The fastest rank waits longest: the least time over ranks is nearest to that of the transfers alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

PENDING = 256
"""Pairs of events that may stand unread between two logging steps, before those done are read."""

DEEPSPEED = (
    "all_reduce",
    "all_reduce_coalesced",
    "inference_all_reduce",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "broadcast_object_list",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_coalesced",
    "all_gather_object",
    "all_to_all",
    "all_to_all_single",
    "gather",
    "scatter",
    "barrier",
)
"""The collectives of DeepSpeed's communication backend, for ``measure_methods``."""


class CommTime:
    """This rank's clock of collectives. ``read`` opens the next window. ``named`` makes a context
    that each measured call enters as well: a profiler's range."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._ms: list[float] = []  # appended to by autograd's threads, too
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._spare: list[torch.cuda.Event] = []
        self._inside = threading.local()
        self._start = clock()
        self.named: Callable[[], AbstractContextManager[object]] = nullcontext

    @contextmanager
    def measured(self, device: torch.device | None) -> Generator[None]:
        """Time inside counts; ``device``: of the tensors, None where there are none. A collective
        that is made of others counts once."""
        if getattr(self._inside, "flag", False):
            yield
            return
        self._inside.flag = True
        try:
            cuda = device is not None and device.type == "cuda"
            with self.named(), self._on_device() if cuda else self._on_host():
                yield
        finally:
            self._inside.flag = False

    @contextmanager
    def uncounted(self) -> Generator[None]:
        """Calls of this thread do not count: the loop does not wait for them."""
        before = getattr(self._inside, "flag", False)
        self._inside.flag = True
        try:
            yield
        finally:
            self._inside.flag = before

    @contextmanager
    def _on_host(self) -> Generator[None]:
        start = self._clock()
        try:
            yield
        finally:
            self._ms.append(1e3 * (self._clock() - start))

    @contextmanager
    def _on_device(self) -> Generator[None]:
        start, end = self._event(), self._event()
        start.record()
        try:
            yield
        finally:
            end.record()
            self._pending.append((start, end))
            if len(self._pending) > PENDING:
                self._fold()

    def _event(self) -> torch.cuda.Event:
        return self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)

    def _fold(self) -> None:
        """Read the pairs that are done, oldest first."""
        while self._pending and self._pending[0][1].query():
            start, end = self._pending.popleft()
            self._ms.append(start.elapsed_time(end))
            self._spare += (start, end)

    def read(self, steps: int) -> dict[str, float]:
        """{"step_ms", "comm_ms" (both per step), "comm" (share 0..1)} of the time since the last
        call, in which ``steps`` steps were done."""
        self._fold()
        spent, self._ms = sum(self._ms), []
        now = self._clock()
        passed, self._start = max(1e3 * (now - self._start), 1e-6), now
        steps = max(steps, 1)
        return {
            "step_ms": passed / steps,
            "comm_ms": spent / steps,
            "comm": min(spent / passed, 1.0),
        }


CLOCK = CommTime()
"""Of this process: what ``ovtrain.distributed.collectives`` and measured methods report to."""


class _MeasuredWork:
    """An asynchronous collective's handle whose ``wait`` is measured."""

    def __init__(self, work: Any, device: torch.device | None, clock: CommTime) -> None:
        self._work, self._device, self._time = work, device, clock

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        with self._time.measured(self._device):
            return self._work.wait(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def measure_methods(backend: Any, names: Iterable[str], clock: CommTime = CLOCK) -> None:
    """From now on, calls of these methods of a communication backend count, and so does the
    ``wait`` of the handles that they return. Names that the backend lacks are passed over; a second
    call changes nothing."""
    for name in names:
        method = getattr(backend, name, None)
        if method is not None and not hasattr(method, "measured_by"):
            setattr(backend, name, _measured(method, clock))


def _measured(method: Callable[..., Any], clock: CommTime) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        device = device_of((*args, *kwargs.values()))
        with clock.measured(device):
            result = method(*args, **kwargs)
        # DeepSpeed has handles of its own beside torch's; a synchronous call gives none.
        return _MeasuredWork(result, device, clock) if hasattr(result, "wait") else result

    setattr(call, "measured_by", clock)  # noqa: B010
    return call


def device_of(values: Iterable[Any]) -> torch.device | None:
    """Of the first tensor among values and lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, Sequence) and value and isinstance(value[0], Tensor):
            return value[0].device
    return None
