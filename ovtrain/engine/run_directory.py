"""The run directory's fixed files: the resolved config, and what ran where.

``config.yaml``, ``run.json``, ``metrics.jsonl``, ``quarantine-{rank}.jsonl``, ``logs/``,
``checkpoints/``; see docs/run_directory.md.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

import ovtrain
from ovtrain.checkpoint.storage import LATEST
from ovtrain.config.guards import GuardConfig
from ovtrain.config.load import to_yaml
from ovtrain.config.train import TrainConfig
from ovtrain.distributed.context import World
from ovtrain.engine.build import Parts
from ovtrain.observability.history import EVENT, METRICS, read_lines
from ovtrain.schema.atomic import atomic_open, write_json
from ovtrain.schema.errors import CheckpointError
from ovtrain.schema.lock import take

FREE_KEYS = frozenset(
    {
        "run.log_every",
        "run.checkpoint_every",
        "run.keep",
        "run.keep_every",
        "run.background_saves",
        "run.wandb",
        "run.wandb_project",
        "run.wandb_entity",
        "run.wandb_group",
        "run.tensorboard",
        "run.out",
        "run.micro_batch",
        "run.backend",
        "run.zero_stage",
        "run.peak_tflops",
        "model.attention",
        "model.recompute",
        "model.compile",
        "data.workers",
        "data.sample_timeout_s",
        "data.worker_memory_mib",
        "data.prefetch",
        "data.cache_dir",
        "data.shard_cache",
        "data.shard_cache_gib",
        "data.max_bad_in_a_row",
        *(f"guards.{entry.name}" for entry in fields(GuardConfig)),
    }
)
"""Keys that may change between a run and its resumption."""


def config_hash(config: TrainConfig) -> str:
    """Of everything but the free keys."""
    text = "\n".join(f"{k}={v}" for k, v in _flat(to_yaml(config)).items() if k not in FREE_KEYS)
    return sha256(text.encode()).hexdigest()[:16]


def _flat(yaml: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, (dict, list)) and value:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, entry in items:
                walk(f"{prefix}.{key}" if prefix else str(key), entry)
        else:
            flat[prefix] = value

    walk("", OmegaConf.to_container(OmegaConf.create(yaml)))
    return flat


def claim(config: TrainConfig) -> None:
    """Take the run directory for this process and insist that what it holds is the same run's.

    A start that failed before it trained leaves no claim. Raises FolderTaken where another process
    trains here, and CheckpointError naming the keys in which the run that is here differs.
    """
    folder = Path(config.run.out)
    take(folder, "run.out")
    path = folder / "config.yaml"
    if _has_trained(folder) and path.is_file():
        before, now = _flat(path.read_text()), _flat(to_yaml(config))
        changed = [
            f"{key}={now.get(key)} (was {before.get(key)})"
            for key in sorted(before.keys() | now.keys())
            if key not in FREE_KEYS and before.get(key) != now.get(key)
        ]
        if changed:
            raise CheckpointError(
                config.run.out,
                "this run directory belongs to another config: " + ", ".join(changed[:5]),
                fix="undo the change or choose another run.out",
            )


def _has_trained(folder: Path) -> bool:
    logged = (EVENT not in row for row in read_lines(folder / METRICS))
    return any(logged) or (folder / "checkpoints" / LATEST).is_file()


def describe(config: TrainConfig, parts: Parts, world: World) -> None:
    """Write ``config.yaml`` and ``run.json``."""
    with atomic_open(Path(config.run.out) / "config.yaml", "w") as handle:
        handle.write(to_yaml(config))
    write_json(
        Path(config.run.out) / "run.json",
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
