import json

import numpy as np
import pytest

from clustering.assign import Nearest
from clustering.quality import majority_share, purity, quality
from clustering.shuffle import main, shuffled
from ovtrain.data.shards import ShardReader
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import LabelStore


def labels_of(counts, seed=0):
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(50)[:n].astype(np.int32) for n in counts]
    return LabelStore.build([f"k{i}" for i in range(len(counts))], rows, 50, "print")


def rows_of(store):
    return [store.lookup(key).tolist() for key in store.keys]


def test_quality_counts_sizes_empties_and_margins():
    ids = np.array([[0, 1], [0, 2], [0, 1], [2, 0]], dtype=np.int32)
    distance = np.array([[1, 2], [1, 1], [0, 0], [3, 4]], dtype=np.float32)
    found = quality(Nearest(ids, distance), clusters=4)
    assert (found["samples"], found["clusters"], found["top"], found["empty"]) == (4, 4, 2, 2)
    assert found["size"] == {"min": 0, "median": 0.5, "mean": 1.0, "max": 3}
    assert found["size_histogram"] == {"edges": [0, 1, 2, 4], "counts": [2, 1, 1]}
    assert found["mean_distance"] == pytest.approx(5 / 4)
    assert sum(found["margin"]["counts"]) == 4
    assert found["margin"]["mean"] == pytest.approx((0.5 + 0 + 0 + 0.25) / 4)
    json.dumps(found)


def test_majority_share_is_the_commonest_class_of_each_cluster():
    cluster = np.array([0, 0, 0, 1, 1])
    assert majority_share(cluster, np.array([2, 2, 1, 0, 1])) == pytest.approx(3 / 5)


def test_purity_joins_classes_by_file_stem(shards, tmp_path):
    reader = ShardReader(shards)
    ways = ["right", "left", "up", "down"]
    ids = [np.array([ways.index(key.split("-")[2])], dtype=np.int32) for key in reader.keys]
    labels = LabelStore.build(reader.keys, ids, 4, "print")
    path = tmp_path / "classes.json"
    known = {key: ways.index(key.split("-")[2]) for key in reader.keys[:20]}
    path.write_text(json.dumps({"classes": ways, "labels": known}))
    found = purity(labels, reader, path)
    assert (found["samples"], found["purity"]) == (20, 1.0)
    assert found["purity_permuted"] < 0.8


def test_purity_of_strangers_is_an_error(shards, tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"classes": ["a"], "labels": {"stranger": 0}}))
    with pytest.raises(LabelError, match="names none"):
        purity(labels_of([1]), ShardReader(shards), path)


def test_shuffling_keeps_the_rows_and_moves_them():
    store = labels_of([3] * 40)
    found = shuffled(store, seed=1)
    assert sorted(rows_of(found)) == sorted(rows_of(store))
    assert sum(a == b for a, b in zip(rows_of(found), rows_of(store), strict=True)) < 6
    assert (found.keys == store.keys).all()
    assert rows_of(shuffled(store, seed=1)) == rows_of(found)
    assert rows_of(shuffled(store, seed=2)) != rows_of(found)


def test_shuffling_leaves_samples_without_labels_without():
    store = labels_of([3, 0, 1, 2, 0, 4])
    found = shuffled(store, seed=0)
    assert (np.diff(found.offsets) == 0).tolist() == (np.diff(store.offsets) == 0).tolist()
    assert sorted(rows_of(found)) == sorted(rows_of(store))


def test_shuffle_command_writes_a_store_for_the_same_shards(tmp_path, capsys):
    labels_of([3] * 8).write(tmp_path / "labels")
    assert main([str(tmp_path / "labels"), "--out", str(tmp_path / "out"), "--seed", "1"]) == 0
    assert LabelStore.read(tmp_path / "out", "print").classes == 50


def test_shuffle_command_reports_a_missing_store_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "--seed", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
