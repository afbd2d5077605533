"""Stands in for every job of the demo: ``python fake_jobs.py MODULE ARGUMENTS``.

Writes the files the real job writes (tiny, through the real contracts) and notes its call in
``calls.jsonl`` of the demo's folder. ``FAKE_FAIL=MODULE`` makes that job fail like a real one.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from ovtrain.schema.labels import CentroidStore, LabelStore
from ovtrain.schema.manifest import ShardManifest
from tests.helpers.shards import write_shards


def keys_of(folder: Path) -> list[str]:
    from ovtrain.schema.manifest import ShardIndex

    tars = [folder / shard.name for shard in ShardManifest.read(folder).shards]
    return [key for tar in tars for key in ShardIndex.read(tar.with_suffix(".npz")).keys]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def generate(words: list[str]) -> None:
    out = Path(option(words, "--out"))
    for split in ("train", "heldout"):
        (out / split).mkdir(parents=True, exist_ok=True)
    (out / "classes.json").write_text('{"classes": ["a"], "labels": {}}')


def prepare(words: list[str]) -> None:
    out, config = (
        Path(option(words, "--out")),
        yaml.safe_load(Path(option(words, "--config")).read_text()),
    )
    count = int(os.environ.get("FAKE_CLIPS", "8"))
    write_shards(out / "video", "video", count, frames=64, size=112, shards=1)
    if config["images_per_clip"]:
        write_shards(out / "image", "image", 2 * count, size=112, shards=1)
    skip = {"file": "broken.mp4", "reason": "unreadable"}
    (out / "skipped.jsonl").write_text(json.dumps(skip) + "\n")


def cluster(words: list[str]) -> None:
    shards, out = Path(words[0]), Path(option(words, "--out"))
    classes = yaml.safe_load(Path(option(words, "--config")).read_text())["clusters"]
    manifest, keys = ShardManifest.read(shards), keys_of(shards)
    rows = [np.array([i % classes], np.int32) for i in range(len(keys))]
    LabelStore.build(keys, rows, classes, manifest.fingerprint).write(out / "labels")
    CentroidStore(np.zeros((classes, 2), np.float32), "fake").write(out / "centroids")


def shuffle(words: list[str]) -> None:
    LabelStore.read(words[0]).write(Path(option(words, "--out")))


def label_page(words: list[str]) -> None:
    LabelStore.read(Path(words[0]) / "labels")
    ShardManifest.read(option(words, "--shards"))
    (Path(words[0]) / "report.html").write_text("a page")


def train(words: list[str]) -> None:
    out = Path(yaml.safe_load(Path(words[-1]).read_text())["run"]["out"])
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    (out / "checkpoints" / "latest").write_text("step-00000001\n")
    row = {"step": 1, "loss": 2.0, "time": time.time()}
    (out / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def probe(words: list[str]) -> None:
    out = Path(yaml.safe_load(Path(words[0]).read_text())["out"])
    out.mkdir(parents=True, exist_ok=True)
    row = {"probe": "linear", "encoder": "trained", "view": "codec", "tokens": 256}
    row |= {"scores": [0.5], "mean": 0.5, "low": 0.4, "high": 0.6}
    result = {"classes": ["a"], "chance": 0.25, "rows": [row], "ranking": [], "notes": []}
    (out / "result.json").write_text(json.dumps(result))


JOBS = {
    "data_pipelines.synthetic": generate,
    "data_pipelines.prepare": prepare,
    "clustering.run": cluster,
    "clustering.shuffle": shuffle,
    "clustering.report": label_page,
    "ovtrain.train": train,
    "ovtrain.eval.probe": probe,
}


def main(module: str, words: list[str]) -> int:
    with open(os.environ["FAKE_CALLS"], "a") as handle:
        handle.write(json.dumps([module, *words]) + "\n")
    if os.environ.get("FAKE_FAIL") == module:
        print("error: FAKE: nothing to work on; name a folder of videos")
        return 2
    JOBS[module](words)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
