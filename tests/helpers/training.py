"""A training set-up of two sources on tiny pictures, in a temporary folder."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from ovtrain.checkpoint import storage
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.config.validate import validate
from ovtrain.data.shards import ShardReader
from ovtrain.distributed.context import World
from ovtrain.engine.build import Parts, build
from ovtrain.engine.run_directory import claim, describe
from ovtrain.engine.trainer import Trainer
from tests.helpers.shards import write_labels, write_shards

MEASURED = (
    "time",
    "samples_per_s",
    "tokens_per_s",
    "flops_per_s",
    "mfu",
    "data_wait",
    "data_wait_ms",
    "data_wait_ms_max",
    "batches_ready",
    "step_ms",
    "comm_ms",
    "comm",
    "rank_ms_max",
    "rank_ms_median",
    "slowest_rank",
    "memory_mib_max",
    "memory_rank",
)
"""Fields of a metrics row that say how fast it went, not what was computed."""


def world(rank: int = 0, size: int = 1) -> World:
    """One rank's place without a process group: enough for whatever does not communicate."""
    return World(rank, rank, size, torch.device("cpu"), None)


def write_setup(folder: Path, samples: int = 24) -> None:
    """Shards and labels of a video and an image source."""
    for kind, classes in (("video", 40), ("image", 23)):
        manifest = write_shards(folder / kind, kind, samples)
        keys = ShardReader(folder / kind).keys
        write_labels(folder / f"{kind}-labels", manifest, keys, classes)


def base_config(
    folder: Path, recompute: int = 0, heads: dict[str, Any] | None = None, **run: Any
) -> dict[str, Any]:
    return {
        "model": {"preset": "nano", "recompute": recompute},
        "data": {
            "sources": [
                {
                    "name": kind,
                    "shards": str(folder / kind),
                    "labels": str(folder / f"{kind}-labels"),
                }
                for kind in ("video", "image")
            ],
            "size": 28,
            "clip_frames": 8,
            "token_budget": 8,
            "chunks": 2,
            "workers": 0,
            "augment": {"gain": 0.2, "shift": 2, "token_keep": 0.75},
        },
        "head": {"sample_rate": 0.3},
        "heads": heads or {},
        "optim": {"lr": 1e-3, "clip": 0.5},
        "run": {
            "steps": 20,
            "global_batch": 8,
            "precision": "fp32",
            "log_every": 1,
            "checkpoint_every": 5,
            "out": str(folder / "run"),
        }
        | run,
    }


def write_config(folder: Path, name: str, **run: Any) -> str:
    """Path of a YAML whose run section has ``run`` on top (and ``recompute`` and ``heads``
    where they belong), its output in ``folder/name``."""
    path = folder / f"{name}.yaml"
    settings = {"out": str(folder / name)} | run
    path.write_text(OmegaConf.to_yaml(base_config(folder, **settings)))
    return str(path)


def typed_config(folder: Path, *overrides: str, **run: Any) -> TrainConfig:
    """A validated config of the set-up in ``folder``."""
    config = load(TrainConfig, write_config(folder, "typed", **run), overrides)
    validate(config, "typed")
    return config


def fit(config: TrainConfig) -> Parts:
    """Train in this process, without a process group; its parts after the last step."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        claim(config)
        parts = build(config, world())
        describe(config, parts, world())
        assert Trainer(config, parts, world()).fit()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return parts


def begin_at(out: Path, step: Path) -> None:
    """A run into ``out`` will go on from ``step``, another run's checkpoint folder."""
    checkpoints = out / "checkpoints"
    shutil.copytree(step, checkpoints / step.name)
    (checkpoints / storage.LATEST).write_text(step.name + "\n")


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def computed(out: Path) -> list[dict[str, Any]]:
    """Metrics rows without the fields that measure time."""
    return [
        {k: v for k, v in row.items() if k not in MEASURED and not k.startswith("data_ms/")}
        for row in metrics(out)
    ]
