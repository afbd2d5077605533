"""A training set-up of two sources on tiny pictures, in a temporary folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ovtrain.data.shards import ShardReader
from tests.helpers.shards import write_labels, write_shards


def write_setup(folder: Path, samples: int = 24) -> None:
    """Shards and labels of a video and an image source."""
    for kind, classes in (("video", 40), ("image", 23)):
        manifest = write_shards(folder / kind, kind, samples)
        keys = ShardReader(folder / kind).keys
        write_labels(folder / f"{kind}-labels", manifest, keys, classes)


def base_config(folder: Path, **run: Any) -> dict[str, Any]:
    return {
        "model": {"preset": "tiny"},
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
            "workers": 1,
            "augment": {"gain": 0.2, "shift": 2, "token_keep": 0.75},
        },
        "head": {"sample_rate": 0.3},
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
    """Path of a YAML whose run section has ``run`` on top, its output in ``folder/name``."""
    path = folder / f"{name}.yaml"
    path.write_text(OmegaConf.to_yaml(base_config(folder, out=str(folder / name), **run)))
    return str(path)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
