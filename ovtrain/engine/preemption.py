"""A polite end: SIGTERM or SIGUSR1 asks the loop to save and stop after the step in flight."""

from __future__ import annotations

import signal
from types import FrameType

import torch

from ovtrain.distributed.collectives import Later, reduce_later
from ovtrain.distributed.context import World


class StopRequest:
    """Any rank's signal stops all ranks at the same step. The handler may fire many times.

    What the ranks tell one another travels between their hosts during a step and is heard before
    the next one: nobody waits for it, nor for a device.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._asked = False
        self._told: Later | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def requested(self) -> bool:
        """Collective. On several ranks, whether any had been asked one call ago."""
        if self.world.group is None:
            return self._asked
        heard = self._told is not None and bool(self._told.wait())
        flag = torch.tensor(float(self._asked))
        self._told = reduce_later(flag, self.world.group, op="max")
        return heard

    def close(self) -> None:
        """Forget what is under way: other ranks may be gone."""
        self._told = None
