import numpy as np
import pytest
import torch

from clustering import neighbours
from clustering.kmeans import passes
from clustering.kmeans.state import MemoryArray
from clustering.neighbours import Layout, make_layout
from clustering.search import open_search
from ovtrain.costs.clustering import FOR_CENTERS, ROW_BYTES
from ovtrain.distributed.context import World
from ovtrain.distributed.grid import Grid
from tests.unit.clustering.clusterings import points_of, quiet
from tests.unit.clustering.reference import blobs

WIDTH = 4


@pytest.fixture
def layouts(monkeypatch):
    """Of every rank, without its groups; ``fitting`` centers fit into a rank's memory."""
    monkeypatch.setattr(neighbours, "make_grid", lambda world, n: Grid(world, n, None, None))

    def made(ranks, clusters, fitting, center_shards=0):
        memory = fitting * WIDTH * ROW_BYTES / FOR_CENTERS / 2**30
        worlds = [World(rank, rank, ranks, torch.device("cpu"), None) for rank in range(ranks)]
        return [make_layout(w, 100, clusters, WIDTH, memory, center_shards) for w in worlds]

    return made


@pytest.mark.parametrize("fitting", [0.3, 1, 2.5, 3, 7])
@pytest.mark.parametrize("clusters", [2, 5, 11])
def test_ranks_of_a_group_take_equally_many_ranges_for_they_meet_after_each(
    layouts, clusters, fitting
):
    first, second = layouts(2, clusters, fitting, center_shards=2)
    assert len(first.ranges) == len(second.ranges) > 0
    taken = [j for part in first.ranges + second.ranges for j in part]
    assert taken == list(range(clusters))


@pytest.mark.parametrize("center_shards", [0, 4])
def test_no_rank_is_without_a_center(layouts, center_shards):
    for clusters, shards in ((1, 1), (3, 2), (4, 4)):
        made = layouts(4, clusters, 0.1, center_shards)
        assert {place.grid.inner_size for place in made} == {shards}
        assert all(len(part) for place in made for part in place.ranges)
        assert all(place.ranges for place in made)


@pytest.mark.parametrize(("ranks", "gpu"), [(1, None), (2, 1)])
def test_a_rank_among_others_searches_on_its_own_gpu(monkeypatch, ranks, gpu):
    asked = []

    def opened(engine, centers, local_rank):
        asked.append(local_rank)
        return open_search(engine, centers, local_rank)

    monkeypatch.setattr(neighbours, "open_search", opened)
    monkeypatch.setattr(passes, "open_search", opened)
    points, largest = points_of(blobs(samples=50))
    world = World(ranks - 1, ranks - 1, ranks, torch.device("cpu"), None)
    place = Layout(Grid(world, 1, None, None), range(50), (range(5),))
    own = passes.Passes(points, place, 5, "faiss", largest, quiet)
    keys = MemoryArray(np.zeros(50, np.int64))
    centers = points.take(np.arange(5)).float()
    own.assign(MemoryArray(centers.numpy()), keys, None, "", add=False)
    own.improve(keys, points.take(np.arange(5, 7)).float(), torch.tensor([3, 4]))
    assert asked == [gpu, gpu]
