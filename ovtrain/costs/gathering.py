"""Which weights ZeRO-3 gathers in a micro-step: DeepSpeed's fetching, played through (0.19).

A module's weights are gathered before it runs and given up after it, forward and backward. Ahead of
that, while fewer than ``PREFETCH`` numbers are on their way and fewer than ``LIVE`` lie whole,
those are gathered that come next in the recorded order. A weight whose next use the look ahead
has passed while it was there is kept until that use: so the last blocks of the forward pass are
not gathered again for the backward pass, and a small encoder's weights only once.

Source: ``PartitionedParameterCoordinator.fetch_sub_module`` and ``release_sub_module``. It records
the order in the first micro-step of a run, which gathers more; this is every one after the first
step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ovtrain.costs.parameters import Parameter

PERSISTENT = 10**5
"""A parameter of at most so many numbers stays whole (DeepSpeed's default)."""
PREFETCH = 5 * 10**7
"""DeepSpeed's default."""
LIVE = 10**8
"""``stage3_max_live_parameters`` as ``engine/deepspeed_backend.py`` sets it."""
Recompute = int
"""As ``model.recompute``: every so many-th block is computed again, 0: none."""


@dataclass(frozen=True)
class Gathers:
    """Of one micro-step: padded numbers that are gathered, in how many calls."""

    numel: int
    calls: int


@dataclass(frozen=True)
class _Event:
    """A module begins (``fetch``) or ends, with its own parameters' indices."""

    fetch: bool
    module: str
    own: tuple[int, ...]


class _Tree:
    """The modules of the encoder as the names of its parameters tell them: in call order, each with
    its own parameters."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.children: dict[str, list[str]] = {"": []}
        self.own: dict[str, tuple[int, ...]] = {"": ()}
        for index, parameter in enumerate(parameters):
            module = self._add(parameter.name.rpartition(".")[0])
            self.own[module] = (*self.own[module], index)

    def _add(self, module: str) -> str:
        if module not in self.own:
            above, _, last = module.rpartition(".")
            if last.isdigit():  # the list of blocks is no module that runs
                above = ""
            self.own[module], self.children[module] = (), []
            self.children[self._add(above)].append(module)
        return module

    def forward(self, module: str) -> Iterator[_Event]:
        yield _Event(True, module, self.own[module])
        for child in self.children[module]:
            yield from self.forward(child)
        yield _Event(False, module, self.own[module])

    def backward(
        self, module: str, recompute: Recompute, begun: frozenset[str] = frozenset()
    ) -> Iterator[_Event]:
        """``begun``: modules that have been fetched before."""
        if module not in begun:
            yield _Event(True, module, self.own[module])
        number = module.removeprefix("layers.")
        if recompute and number.isdigit() and int(number) % recompute == 0:
            begun = frozenset({f"{module}.mlp", f"{module}.mlp.fc2"})
            yield from self._again(module)
        for child in reversed(self.children[module]):
            yield from self.backward(child, recompute, begun)
        yield _Event(False, module, self.own[module])

    def _again(self, block: str) -> Iterator[_Event]:
        """A block whose backward pass finds nothing saved: it comes to its last map, computes the
        block again up to there, and goes on."""
        last = (f"{block}.mlp.fc2", f"{block}.mlp", block)
        for module in reversed(last[:2]):
            yield _Event(True, module, self.own[module])
        yield from (e for e in self.forward(block) if e.fetch or e.module not in last)


def _events(tree: _Tree, recompute: Recompute) -> list[_Event]:
    return [*tree.forward(""), *tree.backward("", recompute)]


Kept = dict[tuple[str, int], set[int]]
"""Parameters that a module keeps at its end, by its name and the modules that began before."""


@dataclass
class _Run:
    """Where the coordinator stands. ``passed``: the latest use of each parameter that the look
    ahead has gone past; ``using``: modules at work with it."""

    numels: list[int]
    prefetch: int
    live: int
    persistent: frozenset[int]
    there: set[int]
    queue: deque[tuple[int, int]]
    passed: dict[int, int] = field(default_factory=dict[int, int])
    using: dict[int, set[str]] = field(default_factory=dict[int, set[str]])
    whole: int = 0
    step: int = 0
    gathered: list[int] = field(default_factory=list[int])
    calls: int = 0

    def fetch(self, event: _Event) -> None:
        self._gather({i for i in event.own if i not in self.there})
        for i in event.own:
            self.using.setdefault(i, set()).add(event.module)
        awaited = {i for i in event.own if self.passed.get(i, -1) < self.step}
        while self.queue and awaited:
            i, used = self.queue.popleft()
            self.passed[i] = used
            awaited.discard(i)
        self._look_ahead()
        self.step += 1

    def _look_ahead(self) -> None:
        room, found, numel = min(self.live - self.whole, self.prefetch), set[int](), 0
        while self.queue and numel < room:
            i, used = self.queue.popleft()
            self.passed[i] = max(self.passed.get(i, -1), used)
            if i not in self.there and i not in found:
                found.add(i)
                numel += self.numels[i]
        self._gather(found)

    def _gather(self, found: set[int]) -> None:
        self.gathered += found
        self.calls += bool(found)
        self.there.update(found)
        self.whole += sum(self.numels[i] for i in found)

    def release(self, event: _Event, kept: Kept) -> None:
        """``kept``: decisions of an earlier pass, or where this one's are put."""
        held = {i for i in event.own if self.passed.get(i, -1) > self.step}
        held = kept.setdefault((event.module, self.step), held)
        for i in event.own:
            self.using[i].discard(event.module)
            if i in self.there and not (i in self.persistent or i in held or self.using[i]):
                self.there.remove(i)
                self.whole -= self.numels[i]


def _play(run: _Run, events: Sequence[_Event], kept: Kept) -> _Run:
    for event in events:
        if event.fetch:
            run.fetch(event)
        else:
            run.release(event, kept)
    return run


@lru_cache(maxsize=256)
def gathers(
    parameters: tuple[Parameter, ...],
    world: int,
    recompute: Recompute = 0,
    prefetch: int = PREFETCH,
    live: int = LIVE,
    *,
    accumulated: bool = False,
) -> Gathers:
    """Of one micro-step, persistent parameters left out. ``accumulated``: a step has several."""
    numels = [p.numel for p in parameters]
    small = frozenset(i for i, n in enumerate(numels) if n <= PERSISTENT)
    events = _events(_Tree(parameters), recompute)
    fetches = [event for event in events if event.fetch]
    order = [(i, step) for step, event in enumerate(fetches) for i in event.own]
    kept: Kept = {}
    # What is kept is decided once, in the first micro-step after the recorded one. If that belongs
    # to the first step, persistent parameters are not whole yet: but for the patch embedding's,
    # which nobody gave up.
    there = small & {0} if accumulated else small
    _play(_Run(numels, prefetch, live, small, set(there), deque(order)), events, kept)
    run = _play(_Run(numels, prefetch, live, small, set(small), deque(order)), events, kept)
    padded = (-(-numels[i] // world) * world for i in run.gathered)
    return Gathers(sum(padded), run.calls)
