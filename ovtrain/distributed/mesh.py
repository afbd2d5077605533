"""Where a process stands among data ranks and tensor ranks.

Rank r of W = D x T stands at (r // T, r % T): a tensor group is T neighbours, which on a cluster
are GPUs of one node. Ranks of a tensor group read the same samples and hold parts of the encoder;
ranks of a data group, those with the same part, read different samples and average their gradients.
Class rows are divided over all W.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist

from ovtrain.distributed.context import World, group_timeout
from ovtrain.distributed.grid import make_grid


@dataclass(frozen=True)
class Mesh:
    """``world``: all ranks; ``data`` and ``tensor``: this rank's place in its two groups, as worlds
    of their own (``group`` None for one rank alone)."""

    world: World
    data: World
    tensor: World

    @property
    def speaks(self) -> bool:
        """Whether this rank is the first of its tensor group, whose ranks all know the same of
        their samples: it counts and names them for all."""
        return self.tensor.rank == 0


def make_mesh(world: World, tensor_ranks: int) -> Mesh:
    """Collective. ``tensor_ranks`` divides the world."""
    if tensor_ranks == 1:
        return Mesh(world, world, replace(world, rank=0, size=1, group=None))
    grid = make_grid(world, tensor_ranks)
    return Mesh(
        world,
        replace(world, rank=grid.outer, size=grid.outer_size, group=grid.outer_group),
        replace(world, rank=grid.inner, size=grid.inner_size, group=grid.inner_group),
    )


def group_of_one(world: World) -> dist.ProcessGroup:
    """Collective: a group that holds this rank alone, for those who insist on one."""
    untyped: Any = dist
    made = [untyped.new_group([rank], timeout=group_timeout()) for rank in range(world.size)]
    return made[world.rank]
