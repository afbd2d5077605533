"""One source's samples: from a place in its stream to the task of making it, and back.

Everything random about a sample is a function of (seed, source, g), g its place in the stream.
"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from ovtrain.config.data import DataConfig, SourceConfig
from ovtrain.config.load import raise_problems
from ovtrain.data import views
from ovtrain.data.batch import PackedSample
from ovtrain.data.clips import ClipReader
from ovtrain.data.making import Made, SampleTask
from ovtrain.data.order import SampleOrder, view_of
from ovtrain.data.shards import ShardReader
from ovtrain.distributed.context import seed_for
from ovtrain.schema.errors import ManifestError
from ovtrain.schema.grid import PatchGrid
from ovtrain.schema.labels import LabelStore, check_classes

log = logging.getLogger(__name__)
PLACEHOLDER_VIEW = views.IMAGE


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
        if self.labels is not None:
            check_classes(config.name, config.labels, self.labels.classes, config.classes)
        frames, size = manifest.frames if manifest.kind == "video" else 1, data.size_of(config)
        self.grid = PatchGrid.from_pixels(frames, size, size, manifest.patch)
        self.order = SampleOrder(config.name, len(self.reader), seed)
        self.hashes = self.reader.hashes
        if self.is_video:
            self._check_clips(size)
        if data.shard_cache and not self.reader.has_checksums:
            log.warning(
                "data.shard_cache: %s has no checksums and is not cached; prepare it again",
                self.reader.folder,
            )
        self.clips = ClipReader(self.reader, data.cache_dir) if self.is_video else None

    def _check_clips(self, size: int) -> None:
        manifest, data = self.reader.manifest, self.data
        smaller = min(manifest.height, manifest.width) < size
        if manifest.frames != data.clip_frames or smaller:
            key = f"source {self.config.name}: size" if self.config.size else "data.size"
            raise ManifestError(
                str(self.reader.folder),
                f"clips of {manifest.frames} frames, {manifest.height} x {manifest.width}",
                allowed=f"data.clip_frames={data.clip_frames}, {key}={size} or larger",
                fix="prepare the shards at this size or change the config",
            )

    def check_budget(self) -> None:
        """Raise ConfigError where the token budget does not fit clips of the side that is shown."""
        if self.is_video:
            size, patch = self.data.size_of(self.config), self.grid.patch
            where = f"source {self.config.name}, clips at {size} px"
            raise_problems(where, self.data.video_problems(size, patch))

    @property
    def is_video(self) -> bool:
        return self.reader.manifest.kind == "video"

    @property
    def classes(self) -> int:
        return self.labels.classes if self.labels else 0

    def task(self, g: int) -> SampleTask:
        """What a worker needs to make the g-th sample, in its view."""
        i, _ = self.order(g)
        view = views.IMAGE
        if self.is_video:
            view = view_of(g, self.data.views, self.seed, self.config.name)
        return SampleTask(
            self.reader.place(i),
            self.reader.manifest.kind,
            view,
            seed_for(self.seed, f"sample:{self.config.name}", g),
            self.grid,
            self.clips.grid if self.clips else self.grid,
            self.data.augment.flip if self.config.flip else 0.0,
            self.reader.locate(i),
            self.clips.cache_file(i) if self.clips else "",
        )

    def name(self, g: int) -> str:
        """``shard.tar/key`` of the g-th sample, for messages."""
        return self.reader.name(self.order(g)[0])

    def sample(self, g: int, made: Made, view: int) -> PackedSample:
        """The g-th sample, made and labelled."""
        key = self.hashes[self.order(g)[0]]
        labels = np.empty(0, np.int32) if self.labels is None else self.labels.lookup(key)
        return PackedSample(
            made.patches,
            made.positions,
            labels,
            self.number,
            view,
            int(key.view(np.int64)),
            made.filled,
        )

    def placeholder(self) -> PackedSample:
        """Stands in for a sample that cannot be read: one grey patch and no labels, so that it
        takes part in no loss."""
        patch = np.full((1, 3 * self.grid.patch**2), 128, np.uint8)
        nowhere: npt.NDArray[np.int64] = np.zeros((1, 3), np.int64)
        return PackedSample(patch, nowhere, np.empty(0, np.int32), self.number, PLACEHOLDER_VIEW, 0)
