"""Entry of a training process: parse -> build -> fit -> close.

    torchrun --nproc-per-node 2 -m ovtrain.train CONFIG.yaml [key=value ...]

Exit status 0 when trained to the end, 2 on an error of the input, 75 when a signal stopped the run
(it has saved; the same command resumes it).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from ovtrain.config.load import find_config, load
from ovtrain.config.train import TrainConfig
from ovtrain.config.validate import validate
from ovtrain.observability.logger import job_logger
from ovtrain.schema.errors import ConfigError, exit_status
from ovtrain.schema.status import REQUEUE, SAVED


def run(config: TrainConfig) -> int:
    import torch

    from ovtrain.distributed.context import die_with_launcher, start_world, stop_world
    from ovtrain.engine import run_directory
    from ovtrain.engine.build import build
    from ovtrain.engine.environment import record_environment
    from ovtrain.engine.trainer import Trainer

    die_with_launcher()
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    world = start_world(
        force_group=config.run.backend == "deepspeed", timeout_s=config.guards.longest_s
    )
    log = job_logger("ovtrain", world.rank, world.size, Path(config.run.out) / "logs")
    if not world.is_main:
        logging.getLogger("ovtrain").setLevel(logging.WARNING)
    if world.is_main:
        run_directory.claim(config)
    parts = build(config, world)
    if world.is_main:
        run_directory.describe(config, parts, world)
    record_environment(Path(config.run.out), world)
    log.info("training %s on %d processes", config.run.out, world.size)
    finished = Trainer(config, parts, world).fit()
    log.info("finished" if finished else SAVED)
    if not finished and not world.is_main:
        print(SAVED, flush=True)  # of this rank; the log is rank 0's
    stop_world()
    return 0 if finished else REQUEUE


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv

    def work() -> int:
        if not argv:
            raise ConfigError(
                "ovtrain.train", "no config given", allowed="CONFIG.yaml [key=value ...]"
            )
        config = load(TrainConfig, find_config(argv[0]), argv[1:])
        validate(config, argv[0])
        return run(config)

    return exit_status(work)


if __name__ == "__main__":
    status = main()
    for polite in (signal.SIGTERM, signal.SIGUSR1):  # its answer is given; no death on the way out
        signal.signal(polite, signal.SIG_IGN)
    # After an error the other ranks may wait in a collective: leave without the group's goodbye,
    # and torchrun ends them.
    os._exit(status) if status == 2 else sys.exit(status)
