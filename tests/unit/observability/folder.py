"""A made-up demo folder with every file the report reads. The numbers mean nothing."""

import json
import math
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from ovtrain.config.data import DataConfig, SourceConfig
from ovtrain.config.load import to_yaml
from ovtrain.config.train import RunConfig, TrainConfig


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def started(step: int, **what: object) -> dict[str, object]:
    """A start event, as the journal writes it."""
    config = TrainConfig(data=DataConfig([SourceConfig("image", "s")]), run=RunConfig(steps=400))
    about = {"world_size": 2, "hosts": ["n1", "n2"], "device": "CPU", "job": "7", "code": "1234"}
    versions = {"torch": "2.13", "deepspeed": None, "ovtrain": "0.1"}
    row: dict[str, object] = {"event": "start", "step": step, "time": 1000.0 + step, "attempt": 0}
    return row | about | {"versions": versions, "config": asdict(config), "after": None} | what


def write_run(folder: Path, *, video: bool, offset: float = 0.0) -> None:
    rows: list[dict[str, object]] = []
    for step in range(10, 410, 10):
        loss = 0.4 + 0.6 * math.exp(-step / 120) + 0.02 * math.sin(step) + offset
        row: dict[str, object] = {"step": step, "loss": 2 * loss, "loss/image": loss, "lr": 1e-3}
        if video:
            row["loss/video"] = 0.9 * loss
            row["views"] = {"codec": 8 * step, "frames": 6 * step, "tiling": 2 * step}
        rates = {"samples_per_s": 101.0, "tokens_per_s": 23456.0, "flops_per_s": 1.2e11}
        rates["comm"] = 0.125
        waits = {"data_wait": 0.031, "data_wait_ms": 3.1, "data_wait_ms_max": 40.0 + step % 30}
        work = {"data_ms/read": 0.2, "data_ms/decode": 11.0 + math.sin(step), "batches_ready": 2}
        bad = {"bad_samples": 3, "bad_reasons": {"cut short": 1, "does not decode": 2}}
        rows.append(row | rates | waits | work | {"filled": 3} | bad)
    write_lines(folder / "metrics.jsonl", rows)
    about = {"world_size": 2, "parameters": 3227328, "device": "CPU", "precision": "bf16"}
    write(folder / "run.json", about | {"config_hash": "abc", "torch": "2.13", "code": "1234"})
    config = TrainConfig(data=DataConfig([SourceConfig("image", "s")]), run=RunConfig(steps=400))
    (folder / "config.yaml").write_text(to_yaml(config))


def row(probe: str, encoder: str, view: str, scores: list[float]) -> dict[str, object]:
    mean = sum(scores) / len(scores)
    spread = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}
    return {
        "probe": probe,
        "encoder": encoder,
        "view": view,
        "tokens": 256,
        "scores": scores,
    } | spread


def write_demo(out: Path) -> Path:
    for seed in (0, 1, 2):
        write_run(out / f"runs/seed-{seed}/stage1", video=False, offset=0.01 * seed)
        write_run(out / f"runs/seed-{seed}/stage2", video=True, offset=0.01 * seed)
    write_run(out / "runs/shuffled/stage2", video=True, offset=0.2)
    rows = [
        row("linear", "trained", "codec", [0.64, 0.71, 0.69]),
        row("linear", "trained", "blanked codec", [0.5, 0.52, 0.51]),
        row("linear", "untrained", "codec", [0.27, 0.25, 0.29]),
        row("linear", "shuffled labels", "codec", [0.28]),
        row("attentive", "trained", "codec", [0.8]),
        row("attentive", "untrained", "codec", [0.66]),
    ]
    ranking = [
        {"encoder": "trained", "auc": 0.91, "percentile": 0.88, "samples": 320},
        {"encoder": "shuffled labels", "auc": 0.52, "percentile": 0.51, "samples": 320},
    ]
    result = {"classes": ["move_right", "<b>nod</b>"], "chance": 0.0625, "rows": rows}
    write(out / "probe/result.json", result | {"ranking": ranking, "notes": ["A made-up note."]})
    for name in ("train-video", "train-image"):
        write(out / f"labels/{name}/quality.json", quality())
    (out / "labels/train-video/report.html").write_text("")
    panels = out / "data/train/panels"
    panels.mkdir(parents=True)
    for i in range(2):
        Image.linear_gradient("L").resize((600, 400)).save(panels / f"clip-{i}.png")
    skips = [
        {"file": "a<script>.mp4", "reason": "unreadable"},
        {"file": "b.mp4", "reason": "short"},
    ]
    write_lines(out / "data/train/skipped.jsonl", skips)
    stages = [
        {"name": "generate", "status": "skipped", "seconds": 61.2, "note": ""},
        {"name": "probe", "status": "failed", "seconds": 3.0, "note": ""},
    ]
    write(out / "stages.json", stages)
    write(out / "demo.json", {"command": ["ovtrain", "demo"], "notes": ["Lowered something."]})
    return out


def quality() -> dict[str, object]:
    return {
        "samples": 768,
        "clusters": 64,
        "top": 5,
        "empty": 1,
        "size": {"min": 0, "median": 10.0, "mean": 12.0, "max": 41},
        "size_histogram": {"edges": [0, 1, 2, 4, 8, 16, 32, 64], "counts": [1, 2, 5, 20, 25, 9, 2]},
        "mean_distance": 0.41,
        "margin": {"mean": 0.3, "edges": [i / 20 for i in range(21)], "counts": [5] * 20},
    }
