"""What watches a run beside its numbers: hung steps, ranks that hold the others up, loss spikes,
pauses for garbage. Config: the guards section.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from ovtrain.config.guards import FIRST_STEP
from ovtrain.config.train import TrainConfig
from ovtrain.distributed.collectives import all_gather_slots, gather_objects
from ovtrain.distributed.comm_time import CLOCK
from ovtrain.distributed.context import World
from ovtrain.engine.collector import StepCollector
from ovtrain.engine.state import TrainState
from ovtrain.engine.watchdog import Watchdog
from ovtrain.observability.ranks import RankRow, RankWatch, peak_memory_mib, rank_metrics
from ovtrain.observability.sinks import HUNG, RANK
from ovtrain.observability.spikes import SpikeDetector
from ovtrain.schema.errors import OvtrainError

WINDOW, LEAST, SUSTAINED = 128, 32, 10
"""Losses that say what to expect, those needed to say it, and those in a row that make a rise."""
LARGE, QUIET = 1.3, 20
"""A rank's memory beyond so many medians is told of; log lines until a rank is named again."""
log = logging.getLogger(__name__)


class LossRise(OvtrainError):
    """The loss rose far above what was expected and stayed there."""


class Health:
    """``fault``: told (kind, step, message) of what goes to the log as a warning."""

    def __init__(
        self, config: TrainConfig, world: World, fault: Callable[[str, int, str], None]
    ) -> None:
        self.guards, self.out, self.world = config.guards, config.run.out, world
        self._fault, self._number = fault, 0
        guards, logs = config.guards, Path(config.run.out) / "logs"
        self.watchdog = Watchdog(
            logs, world.rank, guards.step_timeout_s, end=guards.end_hung, tell=self._hung
        )
        self.ranks = RankWatch(
            gather_objects(platform.node(), world.group), guards.slow_rank, LARGE, QUIET
        )
        self.spikes = SpikeDetector(WINDOW, LEAST, guards.spike_deviations, SUSTAINED)
        self._collector: StepCollector | None = None
        self._read, self._warm = 0, False

    def slow(self, what: str) -> AbstractContextManager[None]:
        """Loading and saving may take longer than a step."""
        return self.watchdog.allowing(what, self.guards.save_timeout_s)

    def begin(self, state: TrainState) -> None:
        """The loop begins at ``state``."""
        if state.spikes:
            self.spikes.restore(state.spikes)
        self._collector = StepCollector(self.guards.gc_every)
        self._read = state.step
        CLOCK.read(1)

    def step(self, number: int, *, first: bool) -> AbstractContextManager[None]:
        """Around update ``number`` (1-based): it has ``step_timeout_s``."""
        self._number = number
        if first:
            return self.watchdog.allowing(f"step {number}", FIRST_STEP * self.guards.step_timeout_s)
        self.watchdog.beat(number)
        return nullcontext()

    def after(self, step: int) -> None:
        """``step`` updates are done."""
        if self._collector is not None:
            self._collector.after(step)

    def losses(self, state: TrainState, rows: Iterable[tuple[int, float]]) -> None:
        """(step, loss) of steps that were applied. Raises LossRise."""
        if self.guards.on_spike == "off":
            return
        events = self.spikes.add(rows)
        state.spikes = self.spikes.to_json()
        for event in events:
            log.warning("%s", event)
            self._fault(event.kind, event.step, str(event))
            if event.kind == "rise" and self.guards.on_spike == "stop":
                raise LossRise(
                    self.out,
                    str(event),
                    fix="write the name of a checkpoint from before into checkpoints/latest and "
                    "look at the data of these steps, or go on with guards.on_spike=warn",
                )

    def row(self, step: int, data_wait_ms: float, stall_ms: float) -> dict[str, float]:
        """Collective: times of the window that ends with ``step``, in which saves took
        ``stall_ms``, and which rank stands out. The first window, warming up, names nobody."""
        steps, self._read = step - self._read, step
        times = CLOCK.read(steps)
        own = times | {"step_ms": times["step_ms"] - stall_ms / max(steps, 1)}
        rows = rank_rows(own, data_wait_ms, self.world)
        warnings = self.ranks.warnings(rows) if self._warm else []
        self._warm = True
        for line in warnings if self.world.is_main else ():
            log.warning(line)
            self._fault(RANK, step, line)
        return times | rank_metrics(rows)

    def _hung(self, message: str) -> None:
        """A thread of the watchdog's."""
        log.warning(message)
        self._fault(HUNG, self._number, message)

    def close(self) -> None:
        if self._collector is not None:
            self._collector.close()
        self.watchdog.close()


def rank_rows(times: Mapping[str, float], data_wait_ms: float, world: World) -> list[RankRow]:
    """Collective: every rank's numbers of a window; ``times``: what ``CLOCK.read`` gave."""
    own = max(times["step_ms"] - times["comm_ms"], 0.0)
    mine = RankRow(own, data_wait_ms, peak_memory_mib(world.device))
    sent = torch.tensor([mine.numbers()], dtype=torch.float64)
    return [RankRow(*row) for row in all_gather_slots(sent, 1, world.group).tolist()]
