"""Rank 0's record of a run: metric rows into every sink, events into metrics.jsonl.

On other ranks a journal takes what it is given and writes nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ovtrain.config.train import RunConfig, TrainConfig
from ovtrain.distributed.context import World
from ovtrain.engine.run_directory import device_name, versions
from ovtrain.observability.history import ATTEMPTS, METRICS, Row, read_events, read_rows
from ovtrain.observability.sinks import JsonlSink, Sink
from ovtrain.observability.sinks_tensorboard import TensorBoardSink
from ovtrain.observability.sinks_wandb import WandbPlace, WandbSink


class Journal:
    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world, self.out = config, world, Path(config.run.out)
        self._metrics: JsonlSink | None = None
        self._others: list[Sink] = []

    def open(self, step: int) -> None:
        """Writing begins. The run goes on from ``step``: what later steps wrote goes. Raises
        ConfigError where a sink that was asked for is not installed."""
        if not self.world.is_main:
            return
        self._metrics = JsonlSink(self.out / METRICS)
        self._metrics.truncate_after(step)
        self._others = _sinks(self.config, self.out, step)

    def write(self, row: Mapping[str, Any]) -> None:
        """A metric row."""
        if self._metrics is not None:
            for sink in (self._metrics, *self._others):
                sink.write(row)

    def start(self, step: int, hosts: Sequence[str], code: str | None) -> None:
        """The loop begins after ``step`` updates, on the ``hosts`` of all ranks."""
        if self._metrics is None:
            return
        earlier = [row for row in read_events(self.out / METRICS) if row["event"] == "start"]
        config = json.loads(json.dumps(asdict(self.config)))  # as it is read back
        known = next((row["config"] for row in reversed(earlier) if "config" in row), None)
        self._event(
            "start",
            step,
            world_size=self.world.size,
            hosts=list(dict.fromkeys(hosts)),
            device=device_name(self.world),
            job=os.environ.get("SLURM_JOB_ID", ""),
            attempt=len(earlier),
            versions=versions(),
            code=code,
            **({} if known == config else {"config": config}),
            after=_last(self.out / ATTEMPTS),
        )

    def stop(self, step: int, message: str) -> None:
        """A signal ended the run after ``step`` updates; it has saved."""
        self._event("stop", step, message=message)

    def fault(self, kind: str, step: int, message: str) -> None:
        """Something went wrong in update ``step`` (1-based)."""
        self._event("fault", step, kind=kind, message=message)

    def _event(self, event: str, step: int, **what: Any) -> None:
        if self._metrics is not None:
            self._metrics.write({"event": event, "step": step, "time": time.time(), **what})

    def close(self) -> None:
        for sink in (self._metrics, *self._others):
            if sink is not None:
                sink.close()
        self._metrics, self._others = None, []


def _sinks(config: TrainConfig, out: Path, step: int) -> list[Sink]:
    run: RunConfig = config.run
    sinks: list[Sink] = []
    if run.tensorboard:
        sinks.append(TensorBoardSink(out, step))
    if run.wandb:
        place = WandbPlace(run.wandb, run.wandb_project, run.wandb_entity, run.wandb_group)
        sinks.append(WandbSink(out, asdict(config), place))
    return sinks


def _last(path: Path) -> Row | None:
    rows = read_rows(path)
    return rows[-1] if rows else None
