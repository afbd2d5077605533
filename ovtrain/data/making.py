"""One sample from bytes to patches: what a loader's workers run.

No torch here, so that a worker starts in the time that numpy and PyAV take. A task says where the
bytes lie and carries the seed of everything random; a worker holds no index and no labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ovtrain.config.data import DataConfig
from ovtrain.data import views
from ovtrain.data.augment import Augmentation, Window, kept_tokens
from ovtrain.data.clips import Clip
from ovtrain.data.clock import Clock
from ovtrain.data.decode.base import Pixels, decode_image, fit
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


class Maker:
    """Task -> Made. Raises MediaError."""

    def __init__(self, data: DataConfig) -> None:
        self.data, self.files = data, TarFiles(ShardCache.of(data))

    def __call__(self, task: SampleTask) -> Made:
        return self._clip(task) if task.kind == "video" else self._picture(task)

    def __reduce__(self) -> tuple[type[Maker], tuple[DataConfig]]:
        return Maker, (self.data,)  # a worker opens its own files

    def _clip(self, task: SampleTask) -> Made:
        clock, rng = Clock(), np.random.default_rng(task.seed)
        with clock("signals"):
            window = Window.draw(task.stored, task.grid, task.flip, rng)
            plan = window.place(self._plan(task, window, clock, rng), task.grid)
            plan = plan.keep(kept_tokens(len(plan.where), self.data.augment.token_keep, rng))
            draw = Augmentation.draw(self.data.augment, rng)

        def read() -> bytes:
            return self.files.read(task.members[CLIP], task.where)

        clip = Clip(read, task.where, task.stored, task.cache, clock)
        patches = window.turn(clip.patches(plan.where, draw))
        return Made(patches, plan.positions, plan.filled, clock.seconds)

    def _plan(
        self, task: SampleTask, window: Window, clock: Clock, rng: np.random.Generator
    ) -> ViewPlan:
        grid = task.grid
        if task.view == views.CODEC:
            with clock("read"):
                payload = self.files.read(task.members[ENERGY], task.where)
            energy = window.energy(read_energy(payload, task.stored, task.where), grid)
            return views.codec_view(energy, grid, self.data.token_budget)
        plan = views.frames_view if task.view == views.FRAMES else views.tiling_view
        return plan(grid, self.data.chunks, rng)

    def _picture(self, task: SampleTask) -> Made:
        clock = Clock()
        jpeg = self.picture_bytes(task, clock)
        with clock("decode"):
            pixels = fit(decode_image(jpeg, task.where), self.data.size)
        return self.picture(task, pixels, clock)

    def picture_bytes(self, task: SampleTask, clock: Clock) -> bytes:
        with clock("read"):
            return self.files.read(task.members[IMAGE], task.where)

    def picture(self, task: SampleTask, pixels: Pixels, clock: Clock) -> Made:
        """From a decoded picture (size, size, 3)."""
        rng = np.random.default_rng(task.seed)
        with clock("crop"):
            window = Window.draw(task.grid, task.grid, task.flip, rng)
            plan = window.place(views.image_view(task.grid), task.grid)
            plan = plan.keep(kept_tokens(len(plan.where), self.data.augment.token_keep, rng))
            draw = Augmentation.draw(self.data.augment, rng)
            patches = views.gather_patches(pixels[None], plan.where, task.grid.patch, draw.offset)
            patches = window.turn(draw.lighten(patches))
        return Made(patches, plan.positions, 0, clock.seconds)
