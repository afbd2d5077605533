from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from ovtrain.distributed import context
from ovtrain.distributed.context import World
from ovtrain.distributed.grid import make_grid


def test_groups_of_a_grid_wait_as_long_as_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[list[int], timedelta]] = []

    def new_group(ranks: list[int], *, timeout: timedelta) -> object:
        made.append((ranks, timeout))
        return tuple(ranks)

    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.setattr(context, "_timeout", timedelta(days=3))
    grid = make_grid(World(2, 2, 4, torch.device("cpu"), None), 2)
    assert (grid.inner_group, grid.outer_group) == ((2, 3), (0, 2))
    assert made == [(ranks, timedelta(days=3)) for ranks in ([0, 1], [2, 3], [0, 2], [1, 3])]
