"""A training step on this CPU against what the planner says it takes.

    python benchmarks/plan.py                          one process, the plain backend
    torchrun --nproc-per-node 2 benchmarks/plan.py     two, ZeRO-1

Rounds of a whole step (its batch made before) and of the encoder alone, forward and backward on the
same samples, interleaved; the fastest of each counts. What the encoder alone achieves is what the
planner is told (``--gpu cpu --tflops``): the ratio says how well it adds up the rest of a step, not
how fast anything is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from measure import interleaved, line
from two_sources import two_sources

from launch.plan.cluster import Request
from launch.plan.job import plan_job
from ovtrain.config.model import ModelConfig
from ovtrain.config.train import RunConfig, TrainConfig
from ovtrain.data.batch import PackedBatch
from ovtrain.distributed.collectives import barrier, broadcast_object
from ovtrain.distributed.context import World, start_world, stop_world
from ovtrain.engine.backend import encode
from ovtrain.engine.build import build
from ovtrain.engine.deepspeed_backend import import_deepspeed
from ovtrain.models.encoder import Encoder, build_encoder

SIZE, BUDGET = 112, 256


def config_of(given: argparse.Namespace, folder: Path, world: World) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(preset=given.preset),
        data=two_sources(folder, world, size=SIZE, budget=BUDGET),
        run=RunConfig(
            out=str(folder / "run"),
            steps=10**6,
            global_batch=given.batch,
            backend="deepspeed" if world.size > 1 else "ddp",
            precision="fp32",
        ),
    )


def alone(encoder: Encoder, batch: PackedBatch) -> None:
    """Forward and backward."""
    encode(encoder, batch).square().sum().backward()
    for parameter in encoder.parameters():
        parameter.grad = None


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    import_deepspeed()
    world = start_world()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(broadcast_object(temporary, world.group))
        config = config_of(given, folder, world)
        parts = build(config, world)
        encoder = build_encoder(config.model, 0)
        batch = next(parts.loader)
        found = interleaved(
            {
                "step": lambda: parts.step.run(batch, 0),
                "encoder": lambda: alone(encoder, batch.micro[0]),
            },
            warm_up=2,
            rounds=given.rounds,
        )
        planned = plan_job(config, Request(1, world.size, "cpu"))
        achieved = planned.plan.flops / world.size / found["encoder"]["min_ms"] / 1e9
        planned = plan_job(config, Request(1, world.size, "cpu", tflops=achieved))
        barrier(world.group)
        parts.loader.close()
    if world.is_main:
        step_ms = 1e3 * planned.estimate.time.total
        print(
            line(
                "plan",
                torch=torch.__version__,
                given=vars(given) | {"processes": world.size},
                measured=found,
                tflops=round(achieved, 4),
                planned_ms=round(step_ms, 1),
                planned={k: round(1e3 * v, 2) for k, v in vars(planned.estimate.time).items()},
                planned_of_measured=round(step_ms / found["step"]["min_ms"], 3),
            )
        )
    stop_world()
    return 0


if __name__ == "__main__":
    sys.exit(main())
