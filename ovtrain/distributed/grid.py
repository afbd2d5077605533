"""Ranks as a grid of two dimensions, with a process group along each.

Rank r of W = outer x inner stands at (r // inner, r % inner): ranks of one inner group are
neighbours, which on a cluster are the GPUs of one node.
"""

# torch.distributed is only partly typed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from ovtrain.distributed.context import World, group_timeout


@dataclass(frozen=True)
class Grid:
    """``inner_group`` holds the ranks that share this one's outer index, ``outer_group`` those that
    share its inner index; None stands for a group of one."""

    world: World
    inner_size: int
    inner_group: dist.ProcessGroup | None
    outer_group: dist.ProcessGroup | None

    @property
    def outer_size(self) -> int:
        return self.world.size // self.inner_size

    @property
    def inner(self) -> int:
        return self.world.rank % self.inner_size

    @property
    def outer(self) -> int:
        return self.world.rank // self.inner_size


def make_grid(world: World, inner: int) -> Grid:
    """Collective: every rank makes all groups, in one order. ``inner`` divides the world."""
    assert world.size % inner == 0, (world.size, inner)
    outer = world.size // inner
    rows = [list(range(o * inner, (o + 1) * inner)) for o in range(outer)]
    columns = [list(range(i, world.size, inner)) for i in range(inner)]
    return Grid(world, inner, _mine(world, rows), _mine(world, columns))


def _mine(world: World, groups: list[list[int]]) -> dist.ProcessGroup | None:
    if len(groups[0]) == 1:
        return None
    if len(groups) == 1:
        return world.group
    untyped: Any = dist
    made = [untyped.new_group(ranks, timeout=group_timeout()) for ranks in groups]
    return made[next(i for i, ranks in enumerate(groups) if world.rank in ranks)]
