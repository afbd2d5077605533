"""Faults that begin inside of a rank, put there before its run begins.

``$FAULT``, JSON: {"name": a function of this module, "rank": where, ...its other arguments}; rank
-1 is all of them. They hold on to places that tests hold on to: ``build``, and what it has built.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

VARIABLE = "FAULT"
POISONED = "poisoned: "
"""Before the name of a sample, in the output of its rank."""
Change = Callable[[Any], None]


def install(env: Mapping[str, str]) -> None:
    """What this rank is to suffer, if anything."""
    if VARIABLE not in env:
        return
    asked = json.loads(env[VARIABLE])
    name, rank = asked.pop("name"), asked.pop("rank")
    if rank in (-1, int(env["RANK"])):
        FAULTS[name](**asked)


def _when_built(change: Change) -> None:
    """``change`` gets the parts of the run."""
    from ovtrain.engine import build as module

    build = module.build

    def built(*given: Any) -> Any:
        parts = build(*given)
        change(parts)
        return parts

    module.build = built


def _before_steps(work: Callable[[int], None]) -> None:
    """``work`` gets the number of updates done, before each of them."""

    def change(parts: Any) -> None:
        run = parts.step.run

        def watched(batch: Any, number: int) -> Any:
            work(number)
            return run(batch, number)

        parts.step.run = watched

    _when_built(change)


def poison(place: str, value: str, step: int) -> None:
    """The first sample of this rank meets ``value`` in update ``step`` (0-based); its name is
    printed."""
    from tests.helpers.training import poison as of_parts

    def change(parts: Any) -> None:
        _, name = of_parts(parts, place, float(value), step=step, sample=0)
        if (watch := parts.step.replicated) is not None:
            watch.watch()  # behind the poison: hooks see what earlier ones made of a gradient
        run = parts.step.run

        def telling(batch: Any, number: int) -> Any:
            result = run(batch, number)
            if number == step:
                print(f"{POISONED}{name()}", flush=True)
            return result

        parts.step.run = telling

    _when_built(change)


def defect(step: int) -> None:
    def work(number: int) -> None:
        if number == step:
            raise KeyError("a defect of this rank")

    _before_steps(work)


def memory(step: int) -> None:
    """No more than is held already: the next large tensor is refused by the system."""
    import torch

    def work(number: int) -> None:
        if number == step:
            limit = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (2**28, limit))
            torch.empty(2**27).fill_(1)

    _before_steps(work)


def slow(step: int, seconds: float) -> None:
    def work(number: int) -> None:
        if number >= step:
            time.sleep(seconds)

    _before_steps(work)


def spike(step: int) -> None:
    """The loss that is reported after update ``step``, not the gradient."""

    def change(parts: Any) -> None:
        run = parts.step.run

        def raised(batch: Any, number: int) -> Any:
            result = run(batch, number)
            if number != step:
                return result
            loss = result.metrics["loss"] + 1000
            return replace(result, metrics={**result.metrics, "loss": loss})

        parts.step.run = raised

    _when_built(change)


def harmful_decoder() -> None:
    """A decoder that does to its worker what the payload says."""
    from ovtrain.data import loader
    from ovtrain.data.pool import SamplePool
    from tests.helpers.harmful import HarmedByPayload

    loader.SamplePool = lambda data: SamplePool(data, HarmedByPayload(data))  # type: ignore[misc]


def short_rendezvous(seconds: float) -> None:
    """Ranks wait so long for one another, where half an hour is the least."""
    from ovtrain.distributed import context

    context.timedelta = lambda **_half_an_hour: timedelta(seconds=seconds)  # type: ignore[assignment]


FAULTS: dict[str, Callable[..., None]] = {
    each.__name__: each
    for each in (poison, defect, memory, slow, spike, harmful_decoder, short_rendezvous)
}
