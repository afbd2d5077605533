"""One sample from bytes to patches: what a loader's workers run.

No torch here, so that a worker starts in the time that numpy and PyAV take. A task says where the
bytes lie and carries the seed of everything random; a worker holds no index and no labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from ovtrain.config.data import DataConfig
from ovtrain.data import views
from ovtrain.data.augment import UNCHANGED, Augmentation, Window, kept_tokens
from ovtrain.data.clips import Clip
from ovtrain.data.clock import Clock
from ovtrain.data.decode.base import decode_part
from ovtrain.data.pixels import Box, Pixels, gather, recolour
from ovtrain.data.shard_cache import ShardCache
from ovtrain.data.shards import read_energy
from ovtrain.data.tars import Member, TarFiles
from ovtrain.data.views import ViewPlan
from ovtrain.schema.grid import PatchGrid
from ovtrain.schema.sample import CLIP, ENERGY, IMAGE, Kind


@dataclass(frozen=True)
class SampleTask:
    """One sample to make. ``where``: ``shard.tar#row``; ``grid``: of what is shown, ``stored``: of
    what the shard holds, as large or larger for clips; ``flip``: share of samples that are
    mirrored; ``cache``: file of the clip's raw frames, or ""."""

    where: str
    kind: Kind
    view: int
    seed: int
    grid: PatchGrid
    stored: PatchGrid
    flip: float
    members: dict[str, Member]
    cache: str = ""


@dataclass(frozen=True)
class Made:
    """patches (n, 3*p*p) uint8, positions (n, 3) int64, filled, seconds by stage."""

    patches: Pixels
    positions: npt.NDArray[np.int64]
    filled: int = 0
    seconds: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Gathered(Made):
    """A sample whose patches are still to be mirrored and recoloured."""

    mirrored: bool = False
    look: Augmentation = UNCHANGED


@dataclass(frozen=True)
class Draw:
    """Which patches a sample keeps, and how they are changed."""

    plan: ViewPlan
    mirrored: bool
    look: Augmentation

    def box(self, task: SampleTask, height: int, width: int) -> Box:
        """What is shown of a picture. A document is shown whole: a crop would cut words, for which
        it has labels."""
        if task.kind == "document":
            return Box(0, 0, height, width)
        return self.look.crop.box(height, width)


class Maker:
    """Task -> Made. Raises MediaError."""

    def __init__(self, data: DataConfig) -> None:
        self.data, self.files = data, TarFiles(ShardCache.of(data))

    def __call__(self, task: SampleTask) -> Made:
        clock = Clock()
        draw = self.draw(task, clock)
        patches = self.patches(task, draw, clock)
        with clock("crop"):
            colours = draw.look.colours
            if colours is not None:
                recolour(patches, colours)
        return Made(patches, draw.plan.positions, draw.plan.filled, clock.seconds)

    def __reduce__(self) -> tuple[type[Maker], tuple[DataConfig]]:
        return type(self), (self.data,)  # a worker opens its own files

    def draw(self, task: SampleTask, clock: Clock) -> Draw:
        """All that is random about a sample; reads no media."""
        rng = np.random.default_rng(task.seed)
        with clock("signals"):
            flip = 0.0 if task.kind == "document" else task.flip
            window = Window.draw(task.stored, task.grid, flip, rng)
            plan = window.place(self._plan(task, window, clock, rng), task.grid)
            plan = plan.keep(kept_tokens(len(plan.where), self.data.augment.token_keep, rng))
            return Draw(plan, window.mirrored, Augmentation.draw(self.data.augment, rng))

    def patches(self, task: SampleTask, draw: Draw, clock: Clock) -> Pixels:
        """(n, 3*p*p) of the media, moved and mirrored."""
        where, offset = draw.plan.where, draw.look.offset
        if task.kind == "video":
            clip = Clip(lambda: self.media(task), task.where, task.stored, task.cache, clock)
            return clip.patches(where, offset, mirrored=draw.mirrored)
        with clock("read"):
            data = self.media(task)
        with clock("decode"):
            patch = task.grid.patch
            shape = (task.grid.height * patch, task.grid.width * patch)
            picture = decode_part(data, task.where, partial(draw.box, task), shape)
        with clock("crop"):
            out = np.empty((len(where), 3 * patch * patch), np.uint8)
            gather(picture, where, patch, out, offset, mirrored=draw.mirrored)
        return out

    def media(self, task: SampleTask) -> bytes:
        """The clip's or picture's file."""
        member = CLIP if task.kind == "video" else IMAGE
        return self.files.read(task.members[member], task.where)

    def _plan(
        self, task: SampleTask, window: Window, clock: Clock, rng: np.random.Generator
    ) -> ViewPlan:
        grid = task.grid
        if task.view == views.IMAGE:
            return views.image_view(grid)
        if task.view == views.CODEC:
            with clock("read"):
                payload = self.files.read(task.members[ENERGY], task.where)
            energy = window.energy(read_energy(payload, task.stored, task.where), grid)
            return views.codec_view(energy, grid, self.data.token_budget)
        plan = views.frames_view if task.view == views.FRAMES else views.tiling_view
        return plan(grid, self.data.chunks, rng)


class Gatherer(Maker):
    """Task -> Gathered, for a loader that does the rest elsewhere."""

    def __call__(self, task: SampleTask) -> Gathered:
        clock = Clock()
        draw = self.draw(task, clock)
        patches = self.patches(task, replace(draw, mirrored=False), clock)
        plan = draw.plan
        made = (patches, plan.positions, plan.filled, clock.seconds)
        return Gathered(*made, draw.mirrored, draw.look)
