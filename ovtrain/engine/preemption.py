"""A polite end: SIGTERM or SIGUSR1 asks the loop to save and stop after the step in flight."""

from __future__ import annotations

import signal
from types import FrameType

import torch

from ovtrain.distributed.collectives import all_reduce
from ovtrain.distributed.context import World


class StopRequest:
    """Any rank's signal stops all ranks at the same step. The handler may fire many times."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def requested(self) -> bool:
        """Collective: one tiny reduction per step on several ranks."""
        flag = torch.tensor(float(self._asked), device=self.world.device)
        return bool(all_reduce(flag, self.world.group, op="max").item())
