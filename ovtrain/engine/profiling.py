"""Some steps of a training run under torch's profiler; nothing of the run is touched.

First steps that warm up (compilation, caches, the batches made ahead), then steps that are timed as
they are, then as many under the profiler, on rank 0. Parts of a step are named from outside, by
ranges around the methods of the parts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from ovtrain.config.train import TrainConfig
from ovtrain.data.loader import Loading
from ovtrain.distributed.collectives import all_reduce, barrier
from ovtrain.distributed.comm_time import CLOCK
from ovtrain.distributed.context import World
from ovtrain.engine.build import Parts
from ovtrain.engine.health import rank_rows
from ovtrain.engine.tally import known_peak
from ovtrain.engine.work import work_of
from ovtrain.observability.profile.page import Measured
from ovtrain.observability.profile.trace import COMMUNICATION, DATA, PREFIX, STEP, WINDOW
from ovtrain.observability.ranks import rank_metrics
from ovtrain.observability.throughput import Throughput

log = logging.getLogger(__name__)


def name_parts(parts: Parts) -> None:
    """Put ranges around what a step consists of."""
    step = parts.step
    named: list[tuple[Any, str, str]] = [
        (step.backend, "forward", "forward"),
        (step.backend, "backward", "backward"),
        (step.backend, "step", "optimizer"),
        (step.sources, "begin", "head"),
        (step.sources, "finish", "head"),
    ]
    for source in parts.heads:
        named += [(source.head, method, "head") for method in ("plan", "take")]
        named.append((source.optimizer, "step", "optimizer"))
    for owner, method, part in named:
        setattr(owner, method, _ranged(getattr(owner, method), PREFIX + part))
    CLOCK.named = partial(record_function, PREFIX + COMMUNICATION)


def _ranged(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return method(*args, **kwargs)

    return call


class Profiling:
    """The steps of one profile, from the run's beginning."""

    def __init__(self, config: TrainConfig, parts: Parts, world: World) -> None:
        self.config, self.parts, self.world = config, parts, world
        self._done = 0
        self._throughput, self._loading = Throughput(), Loading()
        self._work = torch.zeros(3, dtype=torch.float64)
        name_parts(parts)

    def warm_up(self, steps: int) -> None:
        """At least until the batches made ahead are used up: they would hide a slow loader."""
        self._run(max(steps, self.config.data.prefetch + 2))

    def measure(self, steps: int) -> Measured:
        """``steps`` steps without the profiler. Collective."""
        self._settle()
        for reader in (self._throughput.read, self._loading.read, lambda: CLOCK.read(1)):
            reader()
        self._work.zero_()
        self._run(steps)
        self._settle()
        times = CLOCK.read(steps)
        work = all_reduce(self._work.to(self.world.device), self.parts.mesh.data.group).tolist()
        self._throughput.add(round(work[0]), round(work[1]), work[2])
        rates, loading = self._throughput.read(), self._loading.read()
        rows = rank_rows(times, rates["data_wait_ms"], self.world)
        ranks, peak = rank_metrics(rows), self._peak()
        return Measured(
            steps,
            times["step_ms"],
            rates["data_wait"],
            rates["samples_per_s"],
            rates["tokens_per_s"],
            rates["flops_per_s"],
            rates["flops_per_s"] / (peak * self.world.size) if peak else None,
            ranks["memory_mib_max"],
            (ranks["rank_ms_max"], ranks["rank_ms_median"]),
            {k.removeprefix("data_ms/"): v for k, v in loading.items() if "/" in k},
        )

    def trace(self, steps: int, path: Path) -> None:
        """``steps`` steps (and one before) of which rank 0 writes a trace to ``path``."""
        if not self.world.is_main:
            self._run(1 + steps)
            self._settle()
            return
        activities = [ProfilerActivity.CPU]
        if self.world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        order = schedule(wait=0, warmup=1, active=steps)
        with profile(activities=activities, schedule=order) as profiler:
            self._run(1)
            self._settle_device()
            profiler.step()
            with record_function(WINDOW):
                self._run(steps)
                self._settle_device()
        self._settle()
        profiler.export_chrome_trace(str(path))

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            with record_function(STEP):
                self._step()

    def _step(self) -> None:
        with record_function(PREFIX + DATA), self._throughput.waiting():
            batch = self.parts.next_batch()
        self.parts.step.run(batch, min(self._done, self.config.run.total_steps - 1))
        self._done += 1
        self._loading.add(batch)
        for micro in batch.micro:
            work = work_of(micro, self.config.model)
            self._work += torch.tensor([work.samples, work.tokens, work.flops])

    def _settle_device(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)

    def _settle(self) -> None:
        """All ranks have done what was asked of them."""
        self._settle_device()
        barrier(self.world.group)

    def _peak(self) -> float:
        """FLOP/s of one device, 0 where they are not known."""
        return 1e12 * (self.config.run.peak_tflops or known_peak(self.world))
