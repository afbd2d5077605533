import pytest
import torch

from clustering import neighbours
from clustering.neighbours import make_layout
from ovtrain.costs.clustering import FOR_CENTERS, ROW_BYTES
from ovtrain.distributed.context import World
from ovtrain.distributed.grid import Grid

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
