"""Samples that look alike, or whose embeddings are near, are found and left out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipelines.dedup.embedded import main
from data_pipelines.prepare import prepare
from data_pipelines.shards.repair import repair
from data_pipelines.shards.verify import verify
from ovtrain.config.prepare import DedupConfig
from ovtrain.schema.features import FeatureStore
from ovtrain.schema.manifest import ShardManifest
from ovtrain.schema.sample import key_hash

from .test_inputs import STILLS, coded, encoded, picture
from .test_prepare import dataset, rows


def test_samples_that_look_alike_are_left_out_of_the_shards(tmp_path: Path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    first, other = picture(300, 220, 1), picture(300, 220, 2)
    (source / "a.jpg").write_bytes(encoded(first))
    (source / "b.png").write_bytes(encoded(first.resize((200, 150)), "PNG"))
    (source / "c.jpg").write_bytes(encoded(first, quality=30))
    (source / "d.jpg").write_bytes(encoded(other))
    (source / "e.jpg").write_bytes(encoded(ImageOps.mirror(first)))
    for shade in (0, 3):  # flat pictures say nothing of themselves
        (source / f"flat{shade}.jpg").write_bytes(
            encoded(Image.new("RGB", (120, 120), (shade,) * 3))
        )
    coded(source / "v.mp4", 32, "libx264", crf="20")
    coded(source / "w.mp4", 32, "libx264", crf="32")
    config = replace(STILLS, dedup=DedupConfig(near=True), samples_per_shard=2)
    assert prepare(source, out, config)
    keys = {kind: [s["__key__"] for s in dataset(out / kind)] for kind in ("image", "video")}
    assert keys == {"image": ["a", "d", "e", "flat0", "flat3"], "video": ["v"]}
    assert rows(out / "duplicates.jsonl") == [
        {"file": "b", "duplicate_of": "a", "by": "hash"},
        {"file": "c", "duplicate_of": "a", "by": "hash"},
        {"file": "w", "duplicate_of": "v", "by": "hash"},
    ]
    assert json.loads((out / "summary.json").read_text())["duplicates"] == {"hash": 3}
    for kind in keys:
        verify(out / kind)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    source = tmp_path / "in"
    source.mkdir()
    for n in range(4):
        (source / f"{n}.jpg").write_bytes(encoded(picture(120, 120, n)))
    assert prepare(source, tmp_path / "out", STILLS)
    return tmp_path / "out/image"


def test_near_embeddings_name_duplicates_that_repair_drops(shards: Path, tmp_path: Path, capsys):
    fingerprint = ShardManifest.read(shards).fingerprint
    features = np.array([[1, 0], [0, 1], [1, 0.1], [0.7, -0.7]], np.float16)
    keys = key_hash(list("0123"))
    FeatureStore.write(tmp_path / "features", features, keys, "teacher", fingerprint)
    out = tmp_path / "near.jsonl"
    command = [str(shards), "--features", str(tmp_path / "features"), "--out", str(out)]
    assert main(command) == 0
    assert rows(out) == [{"file": "2", "duplicate_of": "0"}]
    np.save(tmp_path / "edges.npy", np.array([[3, 1]]))
    assert main([*command, "--edges", str(tmp_path / "edges.npy")]) == 0
    assert [row["file"] for row in rows(out)] == ["2", "3"]
    repair(shards, drop=frozenset(row["file"] for row in rows(out)))
    assert [sample["__key__"] for sample in dataset(shards)] == ["0", "1"]
    verify(shards)
    assert main(command) == 2  # the features are those of other samples now
    assert "features of other shards" in capsys.readouterr().err
    assert main([str(shards), "--out", str(out)]) == 2
