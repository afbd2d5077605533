import numpy as np
import pytest
import torch

from clustering import arrays
from clustering.approximate import ApproximateSearch, recall_of, tune
from clustering.assign import SEGMENT, Labelling, label_all, store_labels
from clustering.kmeans.array_file import ArrayFile
from clustering.kmeans.state import MemoryArray
from clustering.neighbours import Neighbours, make_layout
from clustering.search import FaissSearch, GemmSearch, on_gpus, pack, unpack, unpack_array
from ovtrain.config.cluster import ClusterConfig
from ovtrain.schema.errors import ConfigError, LabelError
from ovtrain.schema.labels import LabelStore
from tests.unit.clustering.clusterings import ALONE, points_of, quiet
from tests.unit.clustering.reference import blobs, distances, unit


def labelling(folder, x, centers, top, *, engine="gemm", memory_gib=2.0, spherical=False):
    points, _ = points_of(x, spherical, "skip")
    layout = make_layout(ALONE, len(x), *centers.shape, memory_gib, 1)
    neighbours = Neighbours(points, layout, engine)
    return Labelling(neighbours, MemoryArray(centers), top, folder, "stamp", quiet)


def hard(samples=400, count=300, width=32, seed=0):
    """Points that are nobody's in particular: many centers are nearly as near as the nearest."""
    rng = np.random.default_rng(seed)
    x = unit(rng.standard_normal((samples, width))).astype(np.float16)
    return x, unit(rng.standard_normal((count, width))).astype(np.float32)


@pytest.mark.parametrize("engine", ["gemm", "faiss"])
@pytest.mark.parametrize("memory_gib", [2.0, 2e-5])
def test_labels_are_those_of_a_float64_search(tmp_path, engine, memory_gib):
    x, centers = hard()
    job = labelling(tmp_path / "p", x, centers, 10, engine=engine, memory_gib=memory_gib)
    ids, squared = unpack_array(label_all(job).read(0, len(x)))
    exact = distances(x.astype(np.float64), centers.astype(np.float64))
    order = np.argsort(exact, axis=1)[:, :10]
    assert recall_of(ids, order) >= 0.999
    assert squared == pytest.approx(np.take_along_axis(exact, ids, axis=1), rel=1e-5)
    assert (np.diff(squared, axis=1) >= 0).all()


def test_on_the_sphere_labels_are_by_angle(tmp_path):
    x, centers = hard()
    scaled = (x.astype(np.float32) * np.random.default_rng(0).uniform(0.2, 5, (len(x), 1))).astype(
        np.float16
    )
    keys = label_all(labelling(tmp_path / "p", scaled, centers, 3, spherical=True))
    ids, _ = unpack_array(keys.read(0, len(x)))
    cosine = unit(scaled.astype(np.float64)) @ centers.T.astype(np.float64)
    assert (ids == np.argsort(-cosine, axis=1)[:, :3]).mean() > 0.999


def test_what_is_marked_as_done_is_not_done_again(tmp_path):
    x = np.random.default_rng(0).standard_normal((SEGMENT + 5, 2)).astype(np.float16)
    centers = x[:4].astype(np.float32)
    straight = label_all(labelling(tmp_path / "a", x, centers, 2)).read(0, len(x))
    folder = tmp_path / "b"
    label_all(labelling(folder, x, centers, 2)).close()
    keys = ArrayFile(folder / "keys.npy", np.int64, (len(x), 2))
    keys.write(0, np.full((len(x), 2), 7, np.int64))
    done = ArrayFile(folder / "done.npy", np.uint8, (2,))
    done.write(1, np.zeros(1, np.uint8))
    again = label_all(labelling(folder, x, centers, 2)).read(0, len(x))
    assert (again[:SEGMENT] == 7).all()
    assert (again[SEGMENT:] == straight[SEGMENT:]).all()


def test_a_sample_without_a_feature_or_with_a_bad_one_owns_no_label(tmp_path):
    x = blobs(samples=50)
    x[3] = np.nan
    keys = label_all(labelling(tmp_path / "p", x, x[10:20].astype(np.float32), 2))
    rows = np.arange(100, 150, dtype=np.uint64)
    samples = np.concatenate([rows[::-1], np.array([7, 999], np.uint64)])
    told = store_labels(tmp_path / "labels", samples, rows, keys, 10, "print")
    assert told == {"samples": 52, "labels": 98}
    store = LabelStore.read(tmp_path / "labels", "print")
    assert store.classes == 10
    assert len(store.keys) == 52
    for lost in (7, 999, 103):
        assert len(store.lookup(np.uint64(lost))) == 0
    ids, squared = unpack_array(keys.read(0, 50))
    for row in (0, 4, 49):
        assert store.lookup(np.uint64(100 + row)).tolist() == ids[row].tolist()
    kept = np.delete(squared, 3, axis=0)
    assert np.load(tmp_path / "labels" / "distances.npy") == pytest.approx(np.sqrt(kept.ravel()))


def test_labels_written_a_few_at_a_time_are_the_same(tmp_path):
    x = blobs(samples=500)
    keys = label_all(labelling(tmp_path / "p", x, x[:20].astype(np.float32), 3))
    rows = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    rows[:2] = 0, 2**64 - 1
    for name, at_once in (("whole", 10_000), ("parts", 7)):
        store_labels(tmp_path / name, rows[::-1], rows, keys, 20, "print", at_once)
    for file in ("keys.npy", "offsets.npy", "ids.npy", "distances.npy", "store.json"):
        whole, parts = ((tmp_path / n / file).read_bytes() for n in ("whole", "parts"))
        assert whole == parts
    store, (ids, _) = LabelStore.read(tmp_path / "parts"), unpack_array(keys.read(0, 500))
    for row in (0, 1, 77, 499):
        assert store.lookup(rows[row]).tolist() == ids[row].tolist()


def test_equal_sample_keys_are_refused(tmp_path):
    x = blobs(samples=4)
    keys = label_all(labelling(tmp_path / "p", x, x[:2].astype(np.float32), 1))
    same = np.array([5, 5], np.uint64)
    with pytest.raises(LabelError, match="two sample keys are equal"):
        store_labels(tmp_path / "labels", same, same, keys, 2, "print")


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_search_is_widened_until_its_recall_is_what_is_wanted(kind):
    x, centers = hard(samples=600, count=500)
    points, _ = points_of(x)
    search = ApproximateSearch(kind, torch.from_numpy(centers), seed=0)
    tuned = tune(search, points, 10, 0.99, 0, quiet)
    assert tuned.recall >= 0.99
    assert tuned.width > 1  # one cell alone would not do on such data
    ids, squared = search.nearest(torch.from_numpy(x), 10)
    exact = distances(x.astype(np.float64), centers.astype(np.float64))
    assert recall_of(ids.numpy(), np.argsort(exact, axis=1)[:, :10]) > 0.97
    assert squared.numpy() == pytest.approx(np.take_along_axis(exact, ids.numpy(), 1), rel=1e-5)


def test_a_recall_out_of_reach_is_an_error_with_what_is_reached():
    x, centers = hard()
    search = ApproximateSearch("hnsw", torch.from_numpy(centers), seed=0)
    search.most = 2
    with pytest.raises(
        ConfigError, match=r"recall=1.0: search=hnsw reaches 0\.\d+; use search=exact"
    ):
        tune(search, points_of(x)[0], 10, 1.0, 0, quiet)


def test_engines_agree_and_ties_go_to_the_lower_id():
    x, centers = hard()
    table = torch.from_numpy(np.concatenate([centers, centers]))
    for search in (GemmSearch(table), FaissSearch(table)):
        ids, squared = search.nearest(torch.from_numpy(x), 4)
        assert (ids[:, 0] + len(centers) == ids[:, 1]).all()
        assert (squared[:, 0] == squared[:, 1]).all()


def test_keys_order_by_distance_then_id():
    squared = torch.tensor([0.0, 0.0, 1e-30, 1.0, 1.0, 3e38])
    ids = torch.tensor([0, 5, 2, 1, 2_000_000_000, 3], dtype=torch.int32)
    keys = pack(ids, squared)
    assert (keys.sort().values == keys).all()
    assert all(torch.equal(a, b) for a, b in zip(unpack(keys), (ids, squared), strict=True))


def test_shards_of_centers_must_divide_the_ranks():
    with pytest.raises(ConfigError, match="center_shards=3: does not divide 1 ranks"):
        make_layout(ALONE, 10, 5, 4, 1.0, 3)


class FakeFaiss:
    """Says what it was asked for."""

    class GpuMultipleClonerOptions:
        shard = False

    @staticmethod
    def get_num_gpus():
        return 4

    @staticmethod
    def index_cpu_to_gpus_list(index, co, gpus):
        return index, co.shard, gpus


def test_faiss_shards_centers_over_all_gpus_of_a_process_or_takes_the_ranks_own():
    assert on_gpus(FakeFaiss, "index", None) == ("index", True, [0, 1, 2, 3])
    assert on_gpus(FakeFaiss, "index", 2) == ("index", True, [2])
    with pytest.raises(
        ConfigError, match=r"this faiss has no GPU part; pip install ovtrain\[gpu\]"
    ):
        on_gpus(object(), "index", None)


def test_more_neighbours_than_centers_are_refused():
    x, centers = hard()
    with pytest.raises(ConfigError, match="top=301: 300 centers"):
        arrays.nearest(x, centers, 301, ClusterConfig())
