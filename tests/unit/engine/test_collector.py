"""Garbage goes at the chosen steps, and at no other moment."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from ovtrain.engine.collector import StepCollector


class Cycle:
    def __init__(self) -> None:
        self.me = self


def garbage() -> "weakref.ref[Cycle]":
    return weakref.ref(Cycle())


@pytest.fixture(autouse=True)
def keep_collection() -> Iterator[None]:
    before = gc.isenabled()
    gc.enable()
    yield
    gc.unfreeze()
    (gc.enable if before else gc.disable)()


def test_garbage_goes_at_every_nth_step_only():
    collector = StepCollector(3)
    left = garbage()
    many = [Cycle() for _ in range(50_000)]  # Python would have collected many times
    assert len(many) == 50_000
    for step in (1, 2):
        collector.after(step)
        assert left() is not None
    collector.after(3)
    assert left() is None
    collector.close()


def test_what_was_there_at_the_start_is_not_looked_at_again():
    kept = [[] for _ in range(10_000)]
    collector = StepCollector(1)
    assert gc.get_freeze_count() >= len(kept)
    assert len(gc.get_objects()) < len(kept)
    collector.close()
    assert gc.get_freeze_count() == 0


def test_close_restores_what_was_found():
    collector = StepCollector(2)
    assert not gc.isenabled()
    collector.close()
    assert gc.isenabled()
    gc.disable()
    StepCollector(2).close()
    assert not gc.isenabled()


def test_zero_leaves_python_alone():
    collector = StepCollector(0)
    assert gc.isenabled()
    gc.disable()  # not in the middle of what follows
    left = garbage()
    collector.after(10)
    assert left() is not None
    collector.close()
