"""What a save costs the training loop: in the background against one that blocks.

    python benchmarks/checkpoints.py                          one process
    torchrun --nproc-per-node 2 benchmarks/checkpoints.py     two, ZeRO-1

A run of ``--preset`` (base: 92.6 M parameters, 1.1 GiB of weights and moments) with two heads of
``--classes`` rows trains on tiny clips and pictures. Blocking and background saves take turns, each
followed by ``--after`` steps; the disk is that of ``--folder``. Milliseconds, medians over
``--rounds``; ``stall``: how long the loop stands still in ``save``, as rank 0 sees it, once the
save before has ended; ``after``: the steps that follow a save while its copy is written, ``quiet``:
those that follow a save which blocked.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import line

from ovtrain.config.data import DataConfig, SourceConfig
from ovtrain.config.model import ModelConfig
from ovtrain.config.train import RunConfig, TrainConfig
from ovtrain.data.shards import ShardReader
from ovtrain.distributed.collectives import barrier, broadcast_object
from ovtrain.distributed.context import World, start_world, stop_world
from ovtrain.engine.build import Parts, build

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.helpers.shards import write_labels, write_shards

SIZE, SAMPLES = 28, 24


def config_of(given: argparse.Namespace, folder: Path, world: World) -> TrainConfig:
    for kind in ("video", "image"):
        if world.is_main:
            manifest = write_shards(folder / kind, kind, SAMPLES)
            labels = folder / f"{kind}-labels"
            write_labels(labels, manifest, ShardReader(folder / kind).keys, given.classes)
    barrier(world.group)
    sources = [
        SourceConfig(kind, str(folder / kind), str(folder / f"{kind}-labels"))
        for kind in ("video", "image")
    ]
    data = DataConfig(
        sources, size=SIZE, clip_frames=8, token_budget=8, chunks=2, workers=0, prefetch=1
    )
    return TrainConfig(
        model=ModelConfig(preset=given.preset),
        data=data,
        run=RunConfig(
            out=str(folder / "run"),
            steps=10**6,
            global_batch=given.batch,
            backend="deepspeed" if world.size > 1 else "ddp",
            precision="fp32",
        ),
    )


class Bench:
    def __init__(self, parts: Parts, after: int) -> None:
        self.parts, self.after = parts, after
        self.step = 0
        self.quiet, self.busy, self.stalls = list[float](), list[float](), list[float]()
        self.blocking, self.writing = list[float](), list[float]()

    def steps(self, count: int) -> list[float]:
        """Milliseconds of each."""
        found = list[float]()
        for _ in range(count):
            began = time.perf_counter()
            result = self.parts.step.run(next(self.parts.loader), self.step)
            assert not float(result.metrics["refused"])
            self.step += 1
            found.append(1e3 * (time.perf_counter() - began))
        return found

    def save(self, *, background: bool) -> float:
        """Milliseconds until the loop may go on."""
        checkpoints = self.parts.checkpoints
        checkpoints.background = background
        began = time.perf_counter()
        classes = {h.head.source: h.head.classes for h in self.parts.heads}
        checkpoints.save({"step": self.step, "classes": classes})
        return 1e3 * (time.perf_counter() - began)

    def round(self) -> None:
        self.blocking.append(self.save(background=False))
        self.quiet += self.steps(self.after)
        began = time.perf_counter()
        self.stalls.append(self.save(background=True))
        done = self.steps(self.after)
        writing = self.parts.checkpoints.busy()
        self.parts.checkpoints.wait()
        self.busy += done
        self.writing.append(1e3 * (time.perf_counter() - began) if writing else np.nan)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="base")
    parser.add_argument("--classes", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--after", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where checkpoints go; a temporary folder")
    given = parser.parse_args()
    world = start_world()
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(broadcast_object(temporary, world.group))
        parts = build(config_of(given, folder, world), world)
        bench = Bench(parts, given.after)
        bench.steps(2)
        parts.checkpoints.reserve()
        bench.save(background=False)
        for _ in range(given.rounds):
            bench.round()
        newest = sorted((folder / "run" / "checkpoints").glob("step-*"))[-1]
        size = sum(path.stat().st_size for path in newest.iterdir())
        barrier(world.group)
        parts.loader.close()
    if world.is_main:
        print(report(given, world, bench, size))
    stop_world()
    return 0


def report(given: argparse.Namespace, world: World, bench: Bench, size: int) -> str:
    def middle(values: list[float]) -> float:
        return round(float(np.median(values)), 1)

    stall, blocking = middle(bench.stalls), middle(bench.blocking)
    quiet, busy = middle(bench.quiet), middle(bench.busy)
    shown: dict[str, Any] = {
        "preset": given.preset,
        "classes": given.classes,
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "rounds": given.rounds,
        "checkpoint_mib": round(size / 2**20),
        "blocking_ms": blocking,
        "stall_ms": stall,
        "stall_of_blocking": round(stall / blocking, 3),
        "quiet_step_ms": quiet,
        "step_while_written_ms": busy,
        f"slowdown_of_next_{given.after}_steps": round(sum(bench.busy) / sum(bench.quiet), 3),
    }
    return line("checkpoints", **shown)


if __name__ == "__main__":
    sys.exit(main())
