import json

import numpy as np
import pytest

from clustering.label_blocks import LabelBlocks
from clustering.quality import purity, quality
from clustering.shuffle import main, shuffled
from ovtrain.data.shards import ShardReader
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import LabelStore
from ovtrain.schema.sample import key_hash


def labels_of(counts, seed=0):
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(50)[:n].astype(np.int32) for n in counts]
    return LabelStore.build([f"k{i}" for i in range(len(counts))], rows, 50, "print")


def write_labels(folder, ids, distances, classes):
    """A store of one key per row, with its distances."""
    keys = [f"k{i}" for i in range(len(ids))]
    store = LabelStore.build(keys, [np.array(row, np.int32) for row in ids], classes, "print")
    store.write(folder)
    order = np.argsort(key_hash(keys))
    rows = [np.empty(0), *(np.asarray(distances[i], dtype=float) for i in order)]
    np.save(folder / "distances.npy", np.concatenate(rows).astype(np.float32))
    return folder


def rows_of(store):
    return [store.lookup(key).tolist() for key in store.keys]


def test_quality_counts_sizes_empties_and_margins(tmp_path):
    ids = [[0, 1], [0, 2], [0, 1], [2, 0]]
    distances = [[1, 2], [1, 1], [0, 0], [3, 4]]
    found = quality(write_labels(tmp_path, ids, distances, classes=4))
    assert (found["samples"], found["clusters"], found["top"], found["empty"]) == (4, 4, 2, 2)
    size = {key: found["size"][key] for key in ("min", "median", "mean", "max")}
    assert size == {"min": 0, "median": 0.5, "mean": 1.0, "max": 3}
    assert found["size_histogram"] == {"edges": [0, 1, 2, 4], "counts": [2, 1, 1]}
    assert found["mean_distance"] == pytest.approx(5 / 4)
    assert found["distance"]["mean_squared"] == pytest.approx((1 + 1 + 0 + 9) / 4)
    assert found["cluster_distance"]["quantiles"]["50"] == pytest.approx((np.sqrt(2 / 3) + 3) / 2)
    assert sum(found["margin"]["counts"]) == sum(found["distance"]["counts"]) == 4
    assert found["margin"]["mean"] == pytest.approx((0.5 + 0 + 0 + 0.25) / 4)
    json.dumps(found)


def test_quality_is_that_of_the_whole_arrays_whatever_the_blocks(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    many = 1000
    ids = [rng.permutation(40)[: rng.integers(0, 5)].tolist() for _ in range(many)]
    distances = [np.sort(rng.exponential(3, len(row))).tolist() for row in ids]
    folder = write_labels(tmp_path, ids, distances, classes=50)
    whole = quality(folder)
    monkeypatch.setattr(LabelBlocks.blocks, "__defaults__", (7,))
    apart = quality(folder)
    first = np.float32([row[0] for row in distances if row])
    assert whole["samples"] == len(first)
    assert whole["labels_per_sample"]["min"] == 1
    assert whole["labels_per_sample"]["mean"] == pytest.approx(sum(map(len, ids)) / len(first))
    for percent, value in whole["distance"]["quantiles"].items():
        exact = np.percentile(first, int(percent), method="lower")
        assert value == pytest.approx(exact, rel=2**-13)
    edges, counts = whole["distance"]["edges"], whole["distance"]["counts"]
    assert (edges[0], edges[-1]) == pytest.approx((first.min(), first.max()))
    assert np.abs(np.histogram(first, edges)[0] - counts).max() <= 1  # a bin's middle decides
    for key in ("size", "size_histogram", "empty"):
        assert apart[key] == whole[key]
    assert apart["distance"]["counts"] == counts
    assert apart["margin"]["mean"] == pytest.approx(whole["margin"]["mean"])


def test_sizes_that_differ_show_in_gini_and_in_the_largest_clusters_share(tmp_path):
    equal = [[i % 4] for i in range(40)]
    found = quality(write_labels(tmp_path / "a", equal, np.ones((40, 1)), classes=4))["size"]
    assert (found["gini"], found["largest_share"]) == (pytest.approx(0), 0.25)
    one = [[0]] * 40
    found = quality(write_labels(tmp_path / "b", one, np.ones((40, 1)), classes=4))["size"]
    assert (found["gini"], found["largest_share"]) == (pytest.approx(3 / 4), 1.0)


@pytest.mark.parametrize(
    ("file", "array", "said"),
    [
        ("distances.npy", np.ones(3, np.float32), r"float32 \(3,\).*allowed: float32 \(4,\)"),
        ("distances.npy", np.full(4, np.nan, np.float32), "not all are finite"),
        ("ids.npy", np.array([0, 1, 2, 9], np.int32), "ids from 0 to 9; allowed: 0 to 3"),
        ("offsets.npy", np.array([0, 3, 2, 4], np.int64), "not in order"),
        ("keys.npy", None, "unreadable"),
    ],
)
def test_a_damaged_store_is_named(tmp_path, file, array, said):
    folder = write_labels(tmp_path, [[0], [1, 2], [3]], [[1], [1, 1], [1]], classes=4)
    if array is None:
        (folder / file).unlink()
    else:
        np.save(folder / file, array)
    with pytest.raises(LabelError, match=said) as caught:
        quality(folder)
    assert file in str(caught.value)


def test_a_store_without_labels_has_no_quality(tmp_path):
    with pytest.raises(LabelError, match="no sample owns a label"):
        quality(write_labels(tmp_path, [[], []], [[], []], classes=4))


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
    assert found["nmi"] == pytest.approx(1.0)
    assert found["nmi_permuted"] < 0.5


def test_purity_of_many_samples_is_that_of_a_draw(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("clustering.quality.CLASSED", 10)
    reader = ShardReader(shards)
    ids = [np.array([i % 4], dtype=np.int32) for i in range(len(reader))]
    labels = LabelStore.build(reader.keys, ids, 4, "print")
    path = tmp_path / "classes.json"
    known = {key: i % 4 for i, key in enumerate(reader.keys)}
    path.write_text(json.dumps({"classes": list("abcd"), "labels": known}))
    found = purity(labels, reader, path)
    assert (found["samples"], found["purity"]) == (10, 1.0)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"labels": {}}', '{"classes": ["a"], "labels": {"b": 1}}']
)
def test_a_file_that_names_no_classes_is_an_error(shards, tmp_path, text):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(LabelError, match=r"classes\.json"):
        purity(labels_of([1]), ShardReader(shards), tmp_path / "classes.json")


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
