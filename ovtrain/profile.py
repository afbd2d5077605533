"""Where the time of a training step goes.

    torchrun --nproc-per-node 2 -m ovtrain.profile CONFIG.yaml [key=value ...] --steps 5 --warmup 10

Writes ``{run.out}/profile/trace.json.gz`` (for Perfetto or chrome://tracing) and one page on it,
``profile.md``, which it prints as well. Nothing else of the run is read or written: the steps start
from the beginning, or from ``run.init_from``, and are forgotten. Exit status 0, or 2 on an error of
the input.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from ovtrain.config.load import find_config, load
from ovtrain.config.train import TrainConfig
from ovtrain.config.validate import validate
from ovtrain.observability.logger import job_logger
from ovtrain.observability.profile.page import page
from ovtrain.observability.profile.trace import read_trace
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import exit_status

TRACE, PAGE = "trace.json.gz", "profile.md"


def run(config: TrainConfig, steps: int, warmup: int) -> None:
    import torch

    from ovtrain.distributed.context import die_with_launcher, start_world, stop_world
    from ovtrain.engine.build import build
    from ovtrain.engine.profiling import Profiling

    die_with_launcher()
    world = start_world(force_group=config.run.backend == "deepspeed")
    folder = Path(config.run.out) / "profile"
    log = job_logger("ovtrain", world.rank, world.size, folder / "logs")
    if not world.is_main:
        log.setLevel(logging.WARNING)
    parts = build(replace(config, run=replace(config.run, out=str(folder))), world)
    try:
        job = Profiling(config, parts, world)
        log.info("warming up")
        job.warm_up(warmup)
        log.info("measuring %d steps, then profiling as many", steps)
        measured = job.measure(steps)
        job.trace(steps, folder / TRACE)
    finally:
        parts.loader.close()
    if world.is_main:
        cuda = world.device.type == "cuda"
        device = torch.cuda.get_device_name(world.device) if cuda else "CPU"
        about = _about(config, device, world.size, steps)
        text = page(config.run.out, about, read_trace(folder / TRACE), measured)
        with atomic_open(folder / PAGE, "w") as handle:
            handle.write(text)
        print(text, flush=True)
        log.info("trace: %s (open it in https://ui.perfetto.dev)", folder / TRACE)
    stop_world()


def _about(config: TrainConfig, device: str, ranks: int, steps: int) -> str:
    run, model = config.run, config.model
    backend = f"ZeRO-{run.zero_stage}" if run.backend == "deepspeed" else run.backend
    if run.tensor_parallel > 1:
        backend += f", {run.tensor_parallel} tensor ranks" + ", sequence" * run.sequence_parallel
    batch = f"{run.global_batch} samples in a step, micro-batch {run.micro_batch or 'whole'}"
    return (
        f"{steps} steps of rank 0 of {ranks}, {device}; {run.precision}, {backend}; {batch}; "
        f"model {model.preset}, compile {model.compile}, recompute {model.recompute}; "
        f"{config.data.workers} data workers."
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("ovtrain.profile", description="Where a step's time goes.")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, required=True, help="profiled steps")
    parser.add_argument("--warmup", type=int, required=True, help="steps before them")
    given = parser.parse_args(argv)

    def work() -> None:
        config = load(TrainConfig, find_config(given.config), given.overrides)
        validate(config, given.config)
        run(config, given.steps, given.warmup)

    return exit_status(work)


if __name__ == "__main__":
    status = main()
    # As in ovtrain.train: other ranks may wait in a collective.
    os._exit(status) if status == 2 else sys.exit(status)
