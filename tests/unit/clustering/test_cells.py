import numpy as np
import pytest

from clustering.centers import CenterJob, make_centers
from clustering.kmeans import cells
from clustering.kmeans.cells import at_once, rows_of_cells, sizes_of
from clustering.kmeans.state import MemoryArray
from clustering.search import unpack_array
from ovtrain.config.cluster import ClusterConfig
from ovtrain.schema.errors import ConfigError
from tests.unit.clustering.clusterings import ALONE, points_of, quiet
from tests.unit.clustering.reference import blobs


class Keys(MemoryArray):
    """Notes how many were asked for at a time."""

    most = 0

    def read(self, first, count):
        self.most = max(self.most, count)
        return super().read(first, count)


def made(folder, x, **settings):
    config = ClusterConfig(**{"top": 1, "memory_gib": 2.0, **settings})
    points, largest = points_of(x)
    return np.load(
        make_centers(CenterJob(points, largest, config, ALONE, folder, "", quiet)).centers
    )


def test_fewer_distinct_points_than_centers_are_named_with_cells_too(tmp_path):
    x = np.repeat(np.eye(5, 8, dtype=np.float16), 40, axis=0)
    with pytest.raises(ConfigError, match=r"clusters=9: 5 distinct points among 200 .*clusters=5"):
        made(tmp_path / "a", x, clusters=9, coarse=2)
    assert len(np.unique(made(tmp_path / "b", x, clusters=5, coarse=2), axis=0)) == 5


def test_cells_taken_a_few_at_a_time_are_the_same(tmp_path, monkeypatch):
    x = blobs(samples=600)
    whole = made(tmp_path / "whole", x, clusters=40, coarse=6, iterations=3)
    counts = []

    def counted(keys, samples, wanted):
        counts.append(int(wanted.sum()))
        return rows_of_cells(keys, samples, wanted)

    monkeypatch.setattr(cells, "ROWS_AT_ONCE", 250)
    monkeypatch.setattr(cells, "rows_of_cells", counted)
    parts = made(tmp_path / "parts", x, clusters=40, coarse=6, iterations=3)
    assert (whole == parts).all()
    assert len(counts) > 1
    assert sum(counts) == 6


def test_cells_are_counted_a_part_of_the_points_at_a_time(monkeypatch):
    monkeypatch.setattr(cells, "CHUNK", 100)
    keys = np.random.default_rng(0).integers(0, 7, 1050) + (5 << 32)
    keys[::50] = -1
    array = Keys(keys)
    ids, _ = unpack_array(keys)
    assert sizes_of(array, 1050, 9).tolist() == np.bincount(ids[ids >= 0], minlength=9).tolist()
    assert array.most == 100


def test_runs_of_cells_hold_no_more_points_than_wanted():
    sizes = np.array([5, 9, 1, 1, 30, 2, 2])
    assert list(at_once(np.arange(7), sizes, 10)) == [[0], [1, 2], [3], [4], [5, 6]]
    assert list(at_once(np.array([], np.int64), sizes, 10)) == []
