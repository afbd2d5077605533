"""Communication time, without communication: a clock and events that the tests turn themselves.
Two real processes are in tests/parity/job.py."""

from dataclasses import dataclass, field

import pytest
import torch

from ovtrain.distributed.comm_time import PENDING, CommTime, device_of, measure_methods

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@dataclass
class Hands:
    """A clock (s) that stands still unless it is moved."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeEvent:
    """What a stream would have stamped (ms), readable once the stream got there."""

    stream: "FakeStream"
    stamp: float = 0.0

    def record(self) -> None:
        self.stamp = self.stream.queued

    def query(self) -> bool:
        return self.stream.done >= self.stamp

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert self.query()
        assert end.query(), "reading it would wait for the device"
        return end.stamp - self.stamp


@dataclass
class FakeStream:
    queued: float = 0.0
    done: float = 0.0


class OnFakeStream(CommTime):
    def __init__(self, stream: FakeStream, hands: Hands) -> None:
        super().__init__(hands)
        self.stream, self.made = stream, 0

    def _event(self):
        if self._spare:
            return self._spare.pop()
        self.made += 1
        return FakeEvent(self.stream)


def test_host_calls_count_with_their_wall_time_per_step_and_as_a_share():
    hands = Hands()
    comm = CommTime(hands)
    for _ in range(2):
        hands.now += 0.030
        with comm.measured(CPU):
            hands.now += 0.010
    found = comm.read(steps=2)
    assert found == pytest.approx({"step_ms": 40, "comm_ms": 10, "comm": 0.25})
    hands.now += 1
    assert comm.read(steps=1) == pytest.approx({"step_ms": 1000, "comm_ms": 0, "comm": 0})


def test_a_collective_made_of_others_counts_once():
    hands = Hands()
    comm = CommTime(hands)
    with comm.measured(None), comm.measured(CPU):
        hands.now += 0.010
    assert comm.read(1)["comm_ms"] == pytest.approx(10)


def test_a_failing_call_leaves_the_clock_usable():
    hands = Hands()
    comm = CommTime(hands)
    with pytest.raises(RuntimeError), comm.measured(CPU):
        raise RuntimeError
    with comm.measured(CPU):
        hands.now += 0.010
    assert comm.read(1)["comm_ms"] == pytest.approx(10)


def test_device_calls_count_in_the_window_in_which_the_device_gets_there():
    hands, stream = Hands(), FakeStream()
    comm = OnFakeStream(stream, hands)
    for took in (3.0, 5.0):
        with comm.measured(CUDA):
            stream.queued += took
    hands.now, stream.done = 0.1, 3.0
    assert comm.read(1)["comm_ms"] == 3
    stream.done = stream.queued
    assert comm.read(1)["comm_ms"] == 5


def test_events_are_read_early_and_used_again_where_many_are_pending():
    stream = FakeStream()
    comm = OnFakeStream(stream, Hands())
    for _ in range(20 * PENDING):
        with comm.measured(CUDA):
            stream.queued += 1
        stream.done = stream.queued
    assert comm.made <= 2 * (PENDING + 1)
    assert comm.read(1)["comm_ms"] == 20 * PENDING


@dataclass
class FakeWork:
    hands: Hands
    result: str = "done"

    def wait(self) -> str:
        self.hands.now += 0.007
        return self.result

    def is_completed(self) -> bool:
        return True


@dataclass
class FakeBackend:
    hands: Hands
    seen: list[torch.Tensor] = field(default_factory=list)

    def all_reduce(self, tensor, async_op=False):
        self.seen.append(tensor)
        self.hands.now += 0.002
        return FakeWork(self.hands) if async_op else None


def test_methods_of_a_backend_count_once_with_the_wait_of_their_handles():
    hands = Hands()
    backend, comm = FakeBackend(hands), CommTime(hands)
    for _ in range(2):
        measure_methods(backend, ("all_reduce", "broadcast"), comm)
    x = torch.zeros(1)
    assert backend.all_reduce(tensor=x) is None
    assert backend.seen == [x]
    assert comm.read(1)["comm_ms"] == pytest.approx(2)
    work = backend.all_reduce(x, async_op=True)
    hands.now += 1  # computing meanwhile
    assert work.is_completed()
    assert work.wait() == "done"
    assert comm.read(1)["comm_ms"] == pytest.approx(9)


def test_a_call_runs_on_the_device_of_its_first_tensor():
    assert device_of((3, [torch.zeros(1, device="meta")], torch.zeros(1))) == torch.device("meta")
    assert device_of((None, "all")) is None
