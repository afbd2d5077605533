"""One source's samples: from a place in its stream to a PackedSample.

Everything random about a sample is a function of (seed, source, g), g its place in the stream.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ovtrain.config.data import DataConfig, SourceConfig
from ovtrain.data import views
from ovtrain.data.augment import Augmentation, kept_tokens
from ovtrain.data.batch import PackedSample
from ovtrain.data.clips import ClipReader
from ovtrain.data.decode.base import ImageDecoder, Pixels
from ovtrain.data.order import SampleOrder, view_of
from ovtrain.data.shards import ShardReader
from ovtrain.data.views import ViewPlan
from ovtrain.distributed.context import seed_for
from ovtrain.schema.errors import ManifestError, MediaError
from ovtrain.schema.grid import PatchGrid
from ovtrain.schema.labels import LabelStore
from ovtrain.schema.sample import IMAGE, key_hash

PLACEHOLDER_VIEW = views.IMAGE
UNCHANGED = Augmentation()


class Source:
    """Shards, labels and order of one configured source. Raises ManifestError and LabelError."""

    def __init__(self, number: int, config: SourceConfig, data: DataConfig, seed: int) -> None:
        self.number, self.config, self.data, self.seed = number, config, data, seed
        self.reader = ShardReader(config.shards)
        manifest = self.reader.manifest
        if not len(self.reader):
            raise ManifestError(str(self.reader.folder), "no samples", fix="rebuild the shards")
        self.labels = (
            LabelStore.read(config.labels, manifest.fingerprint) if config.labels else None
        )
        frames = manifest.frames if manifest.kind == "video" else 1
        self.grid = PatchGrid.from_pixels(frames, data.size, data.size, manifest.patch)
        self.order = SampleOrder(config.name, len(self.reader), seed)
        self.clips = ClipReader(self.reader, data.cache_dir)
        self.hashes = key_hash(self.reader.keys)
        if manifest.kind == "video" and (
            (manifest.frames, manifest.height, manifest.width)
            != (data.clip_frames, data.size, data.size)
        ):
            raise ManifestError(
                str(self.reader.folder),
                f"clips of {manifest.frames} frames, {manifest.height} x {manifest.width}",
                allowed=f"data.clip_frames={data.clip_frames}, data.size={data.size}",
                fix="prepare the shards at this size or change the config",
            )

    @property
    def is_video(self) -> bool:
        return self.reader.manifest.kind == "video"

    @property
    def classes(self) -> int:
        return self.labels.classes if self.labels else 0

    def rng(self, role: str, g: int) -> np.random.Generator:
        return np.random.default_rng(seed_for(self.seed, f"{role}:{self.config.name}", g))

    def build_video(self, g: int) -> PackedSample:
        """The g-th sample in its view. Raises MediaError."""
        i, _ = self.order(g)
        view = view_of(g, self.data.views, self.seed, self.config.name)
        rng = self.rng("sample", g)
        plan = plan_view(view, self.reader, i, self.grid, self.data, rng)
        plan = plan.keep(kept_tokens(len(plan.where), self.data.augment.token_keep, rng))
        draw = Augmentation.draw(self.data.augment, rng)
        patches = clip_patches(self.clips, i, plan, self.grid.patch, draw)
        return self._sample(i, patches, plan, view)

    def build_images(
        self, places: list[int], decoder: ImageDecoder
    ) -> list[PackedSample | MediaError]:
        """Pictures are decoded together: decoders such as DALI work on batches."""
        numbers = [self.order(g)[0] for g in places]
        read = [self._jpeg(i) for i in numbers]
        whole = [
            (i, jpeg) for i, jpeg in zip(numbers, read, strict=True) if isinstance(jpeg, bytes)
        ]
        decoded = iter(
            decoder([jpeg for _, jpeg in whole], [self.reader.name(i) for i, _ in whole])
        )
        found = [next(decoded) if isinstance(jpeg, bytes) else jpeg for jpeg in read]
        return [
            pixels if isinstance(pixels, MediaError) else self._image(g, i, pixels)
            for g, i, pixels in zip(places, numbers, found, strict=True)
        ]

    def _jpeg(self, i: int) -> bytes | MediaError:
        try:
            return self.reader.member(i, IMAGE)
        except MediaError as error:
            return error

    def _image(self, g: int, i: int, pixels: Pixels) -> PackedSample:
        rng = self.rng("sample", g)
        plan = views.image_view(self.grid)
        plan = plan.keep(kept_tokens(len(plan.where), self.data.augment.token_keep, rng))
        draw = Augmentation.draw(self.data.augment, rng)
        patches = views.gather_patches(pixels[None], plan.where, self.grid.patch, draw.offset)
        return self._sample(i, draw.lighten(patches), plan, views.IMAGE)

    def _sample(self, i: int, patches: Pixels, plan: ViewPlan, view: int) -> PackedSample:
        labels = (
            np.empty(0, np.int32) if self.labels is None else self.labels.lookup(self.hashes[i])
        )
        return PackedSample(
            patches,
            plan.positions,
            labels,
            self.number,
            view,
            int(self.hashes[i].view(np.int64)),
            plan.filled,
        )

    def placeholder(self) -> PackedSample:
        """Stands in for a sample that cannot be read: one grey patch and no labels, so that it
        takes part in no loss."""
        patch = np.full((1, 3 * self.grid.patch**2), 128, np.uint8)
        nowhere: npt.NDArray[np.int64] = np.zeros((1, 3), np.int64)
        return PackedSample(patch, nowhere, np.empty(0, np.int32), self.number, PLACEHOLDER_VIEW, 0)


def plan_view(
    view: int,
    reader: ShardReader,
    i: int,
    grid: PatchGrid,
    data: DataConfig,
    rng: np.random.Generator | None,
) -> ViewPlan:
    """Which patches of clip i a view takes; ``rng`` None gives the evaluation's middle frames."""
    if view == views.CODEC:
        return views.codec_view(reader.energy(i), grid, data.token_budget)
    plan = views.frames_view if view == views.FRAMES else views.tiling_view
    return plan(grid, data.chunks, rng)


def clip_patches(
    clips: ClipReader, i: int, plan: ViewPlan, patch: int, draw: Augmentation = UNCHANGED
) -> Pixels:
    """(N, 3*p*p) uint8 patches of clip i; only the frames of the plan are read."""
    wanted, rows = np.unique(plan.where[:, 0], return_inverse=True)
    pictures = clips.frames(i, wanted.tolist())
    where = np.column_stack([rows.reshape(-1), plan.where[:, 1:]])
    return draw.lighten(views.gather_patches(pictures, where, patch, draw.offset))
