"""Which config a run directory belongs to: the one of its first step, but for the free keys.

Torch-free: a training process and the preflight before it decide by the same rule.
"""

from __future__ import annotations

from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from ovtrain.config.guards import GuardConfig
from ovtrain.config.load import to_yaml
from ovtrain.config.train import TrainConfig
from ovtrain.schema.errors import CheckpointError
from ovtrain.schema.metrics import EVENT, METRICS, read_lines

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
        "run.tensor_parallel",
        "run.sequence_parallel",
        "run.forward_ahead",
        "run.overlap_comm",
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


def insist_on_same_run(config: TrainConfig) -> None:
    """Raise CheckpointError naming the keys in which the run in ``run.out`` differs.

    A start that failed before it trained leaves no claim.
    """
    folder = Path(config.run.out)
    path = folder / "config.yaml"
    if not (_has_trained(folder) and path.is_file()):
        return
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
    return any(logged) or (folder / "checkpoints" / "latest").is_file()


def _flat(yaml: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, list) and value:
            value = dict(enumerate(cast("list[Any]", value)))
        if isinstance(value, dict) and value:
            for key, entry in cast("dict[Any, Any]", value).items():
                walk(f"{prefix}.{key}" if prefix else str(key), entry)
        else:
            flat[prefix] = value

    walk("", OmegaConf.to_container(OmegaConf.create(yaml)))
    return flat
