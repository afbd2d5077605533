"""When to save, what a checkpoint holds, and how a run finds its way back.

Whatever has state registers as a ``Part``; a part writes its own files into the step directory and
reads them back on any world size. All randomness of a run is a function of (seed, role, counter),
so the step and the samples consumed are the whole of it: no generator state is saved.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from ovtrain.checkpoint import storage
from ovtrain.distributed.collectives import barrier
from ovtrain.distributed.context import World
from ovtrain.schema.atomic import write_json

log = logging.getLogger(__name__)


class Part(Protocol):
    """Something with state. ``save`` is called on every rank (it may use collectives)."""

    def save(self, folder: Path, world: World) -> None: ...

    def load(self, folder: Path) -> None: ...


class Checkpoints:
    def __init__(
        self, folder: Path, parts: dict[str, Part], world: World, *, every: int, keep: int
    ) -> None:
        self.folder, self.parts, self.world = folder, parts, world
        self.every, self.keep = every, keep
        self.saved_step = -1

    def due(self, step: int, *, final: bool) -> bool:
        """Whether ``step`` is to be saved and has not been yet."""
        return step != self.saved_step and (final or step % self.every == 0)

    def save(self, state: dict[str, Any]) -> None:
        """Write a whole step directory; any failure is raised: a run never goes on unsaved."""
        final = self.folder / storage.step_name(state["step"])
        temp = self.folder / f".{final.name}.tmp"
        if self.world.is_main:
            shutil.rmtree(temp, ignore_errors=True)
            os.makedirs(temp)
        barrier(self.world.group)
        for part in self.parts.values():
            part.save(temp, self.world)
        barrier(self.world.group)
        if self.world.is_main:
            write_json(temp / storage.STATE, state | {"world_size": self.world.size})
            storage.seal(temp, final)
            storage.prune(self.folder, self.keep, state["step"])
            log.info("saved %s", final)
        barrier(self.world.group)
        self.saved_step = state["step"]

    def resume(self) -> dict[str, Any] | None:
        """Load the newest checkpoint into the parts; its state, or None for a fresh run."""
        folder = storage.latest(self.folder)
        if folder is None:
            return None
        storage.check(folder)
        state = storage.read_state(folder)
        for part in self.parts.values():
            part.load(folder)
        self.saved_step = state["step"]
        log.info("resumed from %s", folder)
        return state
