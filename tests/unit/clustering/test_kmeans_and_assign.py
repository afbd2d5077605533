import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from clustering.assign import label_store, nearest
from clustering.kmeans import kmeans
from ovtrain.config.cluster import ClusterConfig
from ovtrain.schema.errors import ConfigError, LabelError
from ovtrain.schema.features import FeatureStore
from ovtrain.schema.labels import CentroidStore
from ovtrain.schema.sample import key_hash


def store(points, teacher="t"):
    keys = key_hash([f"k{i}" for i in range(len(points))])
    folder = tempfile.mkdtemp()
    return FeatureStore.write(Path(folder), np.asarray(points), keys, teacher, "print")


def blobs(count=4, each=20, width=8, seed=0):
    rng = np.random.default_rng(seed)
    centers = 5 * rng.standard_normal((count, width))
    return (
        centers.repeat(each, axis=0) + 0.1 * rng.standard_normal((count * each, width))
    ), centers


def test_separate_groups_each_get_a_center():
    points, centers = blobs()
    found = kmeans(store(points), 12, 20, seed=0).centroids  # more than groups: no local optimum
    distance = np.linalg.norm(found[:, None] - centers[None], axis=-1)
    assert found.dtype == np.float32
    assert distance.min(axis=0).max() < 0.2


def test_same_seed_same_centers():
    points, _ = blobs(seed=1)
    first, again, other = (kmeans(store(points), 10, 5, seed=s).centroids for s in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_spherical_centers_have_unit_length():
    points, _ = blobs()
    found = kmeans(store(points), 4, 5, seed=0, spherical=True).centroids
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)


def test_no_center_stays_empty_while_distinct_samples_are_left():
    rng = np.random.default_rng(0)
    points = np.concatenate([np.zeros((100, 4)), rng.standard_normal((12, 4))])
    centers = kmeans(store(points), 13, 10, seed=0)
    owners = nearest(store(points), centers, 1).ids[:, 0]
    assert np.isfinite(centers.centroids).all()
    assert len(np.unique(owners)) == 13


def test_identical_samples_end_with_finite_centers():
    centers = kmeans(store(np.ones((40, 4))), 8, 5, seed=0)
    assert np.isfinite(centers.centroids).all()


def test_too_many_clusters_are_refused_with_both_numbers_and_a_value_to_set():
    points, _ = blobs()
    with pytest.raises(ConfigError, match=r"clusters=400000: 80 samples.*set clusters=20 or lower"):
        kmeans(store(points), 400_000, 5, seed=0)
    assert len(kmeans(store(points), 20, 5, seed=0).centroids) == 20


def test_features_that_are_not_finite_are_refused():
    points, _ = blobs()
    points[3, 2] = np.nan
    with pytest.raises(LabelError, match="not all are finite"):
        kmeans(store(points), 4, 5, seed=0)


def test_absent_faiss_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    points, _ = blobs()
    with pytest.raises(ConfigError, match=r"pip install ovtrain\[cpu\]"):
        kmeans(store(points), 4, 5, seed=0)


def test_nearest_centers_are_those_of_a_float64_search():
    rng = np.random.default_rng(0)
    points = store(rng.standard_normal((300, 16)))
    centers = CentroidStore(rng.standard_normal((50, 16)).astype(np.float32), "t")
    found = nearest(points, centers, 10)
    exact = np.linalg.norm(
        points.features.astype(np.float64)[:, None] - centers.centroids.astype(np.float64), axis=-1
    )
    order = np.argsort(exact, axis=1)[:, :10]
    assert (found.ids == order).all()
    # faiss expands |x - c|^2 in float32: relative 1e-6 of |x|^2 + |c|^2 before the root
    assert found.distance == pytest.approx(np.take_along_axis(exact, order, axis=1), abs=1e-3)


def test_centers_of_another_teacher_are_refused():
    centers = CentroidStore(np.zeros((4, 8), dtype=np.float32), "other")
    with pytest.raises(LabelError, match=r"made by other.*allowed: t "):
        nearest(store(blobs()[0]), centers, 2)


def test_more_labels_than_centers_are_refused():
    centers = CentroidStore(np.zeros((4, 8), dtype=np.float32), "t")
    with pytest.raises(ConfigError, match="top=5: 4 centers"):
        nearest(store(blobs()[0]), centers, 5)


def test_a_sample_without_a_feature_owns_no_label():
    points = store(blobs()[0])
    found = nearest(points, kmeans(points, 4, 5, seed=0), 2)
    keys = ["lost", *(f"k{i}" for i in range(80))]
    labels = label_store(keys, points, found, 4)
    assert len(labels.keys) == 81
    assert len(labels.lookup(key_hash(["lost"])[0])) == 0
    assert labels.lookup(key_hash(["k7"])[0]).tolist() == found.ids[7].tolist()
    assert (labels.classes, labels.fingerprint) == (4, "print")


def test_config_lists_its_problems():
    bad = ClusterConfig(teacher="clip", clusters=4, top=10, workers=0)
    assert len(bad.problems()) == 3
