"""Stores of labels, centroids and features: what is written is read, what does not fit is
refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import STORE, CentroidStore, LabelStore
from ovtrain.schema.sample import key_hash

KEYS = ["c", "a", "b"]
LABELS = [np.array(ids, dtype=np.int32) for ids in ([7, 1], [], [2, 9, 4])]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    LabelStore.build(KEYS, LABELS, classes=10, fingerprint="f" * 32).write(tmp_path)
    return tmp_path


def test_every_key_finds_its_labels_in_order(store: Path):
    read = LabelStore.read(store, fingerprint="f" * 32)
    for key, labels in zip(KEYS, LABELS, strict=True):
        (hashed,) = key_hash([key])
        assert read.lookup(hashed).tolist() == labels.tolist()
    assert read.classes == 10


def test_an_unknown_key_has_no_labels(store: Path):
    assert LabelStore.read(store).lookup(key_hash(["z"])[0]).tolist() == []


def test_labels_of_other_shards_are_refused(store: Path):
    with pytest.raises(LabelError, match=r"made from shards ffffffffffff, .*ovtrain cluster"):
        LabelStore.read(store, fingerprint="0" * 32)


def test_equal_keys_are_refused():
    with pytest.raises(LabelError, match="equal"):
        LabelStore.build(["a", "a"], LABELS[:2], 10, "")


def test_ids_outside_the_classes_are_refused(tmp_path: Path):
    LabelStore.build(["a"], [np.array([10], dtype=np.int32)], 10, "").write(tmp_path)
    with pytest.raises(LabelError, match="ids from 10 to 10; allowed: 0 to 9"):
        LabelStore.read(tmp_path)


@pytest.mark.parametrize("data", [b"", b"not numpy"])
def test_a_damaged_array_is_named(store: Path, data: bytes):
    (store / "ids.npy").write_bytes(data)
    with pytest.raises(LabelError, match=r"ids\.npy: unreadable"):
        LabelStore.read(store)


def test_a_store_of_another_kind_or_version_is_refused(store: Path):
    with pytest.raises(LabelError, match="kind=labels version=1; allowed: kind=centroids"):
        CentroidStore.read(store)
    about = json.loads((store / STORE).read_text())
    (store / STORE).write_text(json.dumps(about | {"version": 2}))
    with pytest.raises(LabelError, match="version=2"):
        LabelStore.read(store)


def test_an_empty_folder_says_what_to_do(tmp_path: Path):
    with pytest.raises(LabelError, match="no labels store here; make it with `ovtrain cluster`"):
        LabelStore.read(tmp_path)


def test_centroids_come_back(tmp_path: Path):
    centroids = np.ones((4, 3), dtype=np.float32)
    CentroidStore(centroids, "teacher").write(tmp_path / "c")
    assert np.array_equal(CentroidStore.read(tmp_path / "c").centroids, centroids)
