"""The run directory's fixed files: the resolved config, and what ran where.

``config.yaml``, ``run.json``, ``metrics.jsonl``, ``quarantine-{rank}.jsonl``, ``logs/``,
``checkpoints/``; see docs/run_directory.md.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import torch

import ovtrain
from ovtrain.config.identity import config_hash, insist_on_same_run
from ovtrain.config.load import to_yaml
from ovtrain.config.train import TrainConfig
from ovtrain.distributed.context import World
from ovtrain.engine import environment, quarantine
from ovtrain.engine.build import Parts
from ovtrain.observability.history import METRICS
from ovtrain.schema.atomic import atomic_open, sweep, write_json
from ovtrain.schema.lock import take

CONFIG, RUN = "config.yaml", "run.json"
OWN = (CONFIG, RUN, METRICS, quarantine.PATTERN, environment.NAME, environment.DIFF)
"""Files that nobody writes but the process that holds the lock."""


def claim(config: TrainConfig) -> None:
    """Take the run directory for this process, insist that what it holds is the same run's, and
    remove what a killed start was writing.

    Raises FolderTaken where another process trains here, and CheckpointError naming the keys in
    which the run that is here differs.
    """
    out = Path(config.run.out)
    take(out, "run.out")
    insist_on_same_run(config)
    sweep(out, *OWN)


def describe(config: TrainConfig, parts: Parts, world: World) -> None:
    """Write ``config.yaml`` and ``run.json``."""
    with atomic_open(Path(config.run.out) / CONFIG, "w") as handle:
        handle.write(to_yaml(config))
    write_json(
        Path(config.run.out) / RUN,
        {
            "command": sys.argv,
            "config_hash": config_hash(config),
            "world_size": world.size,
            "device": device_name(world),
            "precision": config.run.precision,
            "parameters": parts.encoder.parameter_count,
            "head_rows": {h.head.source: h.head.classes for h in parts.heads},
            **versions(),
            "code": code_state(),
        },
    )


def versions() -> dict[str, str | None]:
    """Of what computes; None for what this process does not use."""
    return {
        "torch": torch.__version__,
        "deepspeed": getattr(sys.modules.get("deepspeed"), "__version__", None),
        "ovtrain": ovtrain.__version__,
    }


def device_name(world: World) -> str:
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads per rank"


def code_state() -> str | None:
    """Commit of the checkout ovtrain runs from, or None for an installed package."""
    root = Path(ovtrain.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
