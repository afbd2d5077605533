"""Data section: sources, views, token budget, augmentation, decoding."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ovtrain.config.rules import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SHARE_OR_NONE,
    broken,
    not_among,
)

VIEW_BLOCK = 16
"""Video samples per block in which the realised view shares are exact."""
NAME = re.compile(r"[A-Za-z0-9_-]+")
DECODERS = ("pyav", "dali")


@dataclass(frozen=True)
class SourceConfig:
    """One named dataset: folder of shards, folder of its LabelStore, share of the batch, weight.

    ``labels: ""`` means that the source trains no head. ``centroids``: folder of the CentroidStore
    that ``head.init: centroids`` starts its rows from. ``flip: false`` where a mirrored picture
    would be a wrong one: text, directions. ``size``: its picture side in pixels, 0 for
    ``data.size``. ``classes``: how many its labels must have; 0 takes what they have.
    """

    name: str = ""
    shards: str = ""
    labels: str = ""
    centroids: str = ""
    share: float = 1.0
    weight: float = 1.0
    flip: bool = True
    size: int = 0
    classes: int = 0


@dataclass(frozen=True)
class ViewShares:
    """Shares of the three video views; each a multiple of 1/16."""

    codec: float = 0.5
    frames: float = 0.375
    tiling: float = 0.125

    def counts(self) -> tuple[int, int, int]:
        """Samples of each view in a block of 16."""
        shares = (self.codec, self.frames, self.tiling)
        codec, frames, tiling = (round(share * VIEW_BLOCK) for share in shares)
        return codec, frames, tiling

    def problems(self) -> list[str]:
        shares = (self.codec, self.frames, self.tiling)
        exact = all(abs(s * VIEW_BLOCK - round(s * VIEW_BLOCK)) < 1e-9 and s >= 0 for s in shares)
        if not exact or sum(self.counts()) != VIEW_BLOCK:
            return [
                f"data.views={shares}; allowed: three multiples of 1/{VIEW_BLOCK} that sum to 1; "
                "the paper's are 0.5, 0.375, 0.125"
            ]
        return []


@dataclass(frozen=True)
class AugmentConfig:
    """Per-sample, seeded by (seed, sample, epoch).

    gain         luminance factor drawn from 1 +- gain.
    contrast     factor on the distance from mid-grey, drawn from 1 +- contrast.
    saturation   factor on the distance from the pixel's own grey, drawn from 1 +- saturation.
    shift        pictures are moved by up to this many pixels on each axis (edges repeat).
    token_keep   share of tokens kept, drawn without replacement.
    flip         share of samples that are mirrored, of sources that allow it (``flip``).
    crop_area    least and greatest share of a picture that is shown, at random; [] shows the
                 largest square at its centre.
    crop_aspect  least and greatest width over height of what is shown, before it is made square.

    Clips that are stored larger than they are shown are cropped at random on their patch grid.
    Documents are shown whole, scaled to a square, and never mirrored.
    """

    gain: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    shift: int = 0
    token_keep: float = 1.0
    flip: float = 0.0
    crop_area: list[float] = field(default_factory=list[float])
    crop_aspect: list[float] = field(default_factory=lambda: [0.75, 4 / 3])

    def problems(self) -> list[str]:
        rules = {BELOW_ONE: ("gain", "contrast", "saturation"), NOT_NEGATIVE: ("shift",)}
        rules |= {SHARE: ("token_keep",), SHARE_OR_NONE: ("flip",)}
        found = broken(self, "data.augment.", rules)
        if self.crop_area and not _range(self.crop_area, 1):
            found.append(
                f"data.augment.crop_area={self.crop_area}; allowed: [] or two rising shares above "
                "0 to 1, as [0.35, 1.0]"
            )
        if not _range(self.crop_aspect, math.inf):
            found.append(
                f"data.augment.crop_aspect={self.crop_aspect}; allowed: two rising positive "
                "numbers, as [0.75, 1.333]"
            )
        return found


def _range(values: Sequence[float], most: float) -> bool:
    return len(values) == 2 and 0 < values[0] <= values[1] <= most and math.isfinite(values[1])


@dataclass(frozen=True)
class DataConfig:
    """size             picture side in pixels, of sources that name none of their own
    clip_frames        frames of a clip, all of them on the 64-grid
    token_budget       tokens per video sample
    chunks             frames of the frames and tiling views
    decoder            pyav (with libjpeg-turbo and Pillow for pictures), or dali: the same samples
                       made by DALI's pipelines, on the rank's GPU where it has one
    workers            processes that make samples; 0: this process does, and a file that kills a
                       decoder kills the run
    sample_timeout_s   a worker that takes longer for a sample is killed, and the sample skipped
    worker_memory_mib  most data that a worker may hold; beyond it the sample is skipped
    prefetch           batches made ahead
    cache_dir          folder for the raw frames of clips, or ""
    shard_cache        folder on a local disk for what was read of the shards, or ""
    shard_cache_gib    most that it may hold
    max_bad_in_a_row   unreadable samples in a row that stop the run
    """

    sources: list[SourceConfig] = field(default_factory=list[SourceConfig])
    size: int = 224
    clip_frames: int = 64
    token_budget: int = 2048
    chunks: int = 8
    views: ViewShares = field(default_factory=ViewShares)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    decoder: str = "pyav"
    workers: int = 4
    sample_timeout_s: float = 30.0
    worker_memory_mib: int = 2048
    prefetch: int = 2
    cache_dir: str = ""
    shard_cache: str = ""
    shard_cache_gib: float = 200.0
    max_bad_in_a_row: int = 100

    def size_of(self, source: SourceConfig) -> int:
        """Picture side of a source, in pixels."""
        return source.size or self.size

    @property
    def largest_size(self) -> int:
        """The largest picture side of all sources."""
        return max((self.size_of(source) for source in self.sources), default=self.size)

    def video_problems(self, size: int, patch: int) -> list[str]:
        """What the token budget breaks for clips shown at ``size``, a multiple of ``patch``."""
        side = size // patch
        per_frame, budget = side * side, self.token_budget
        found: list[str] = []
        if self.views.frames + self.views.tiling > 0 and budget != self.chunks * per_frame:
            found.append(
                f"data.token_budget={budget} with views frames and tiling must be data.chunks="
                f"{self.chunks} times {per_frame} ({side}x{side} patches per frame); "
                f"use {self.chunks * per_frame}"
            )
        if not per_frame <= budget <= self.clip_frames * per_frame:
            found.append(
                f"data.token_budget={budget}; allowed: {per_frame} (one frame) to "
                f"{self.clip_frames * per_frame} (the whole clip)"
            )
        return found

    def problems(self) -> list[str]:
        found = self.views.problems() + self.augment.problems()
        if not self.sources:
            found.append("data.sources is empty; name at least one source with its shards")
        names = [source.name for source in self.sources]
        found += [
            f"source name {name}; allowed: letters, digits, - and _ (files are named after it)"
            for name in names
            if name and not NAME.fullmatch(name)
        ]
        if len(set(names)) != len(names) or "" in names:
            found.append(f"data.sources names {names}; each needs a name of its own")
        for source in self.sources:
            of_source = {POSITIVE: ("share",), NOT_NEGATIVE: ("weight", "size", "classes")}
            found += broken(source, f"source {source.name}: ", of_source)
            if source.classes and not source.labels:
                found.append(f"source {source.name}: classes has no effect without labels")
        found += not_among(self, "data.", {"decoder": DECODERS})
        sizes = ("size", "clip_frames", "token_budget", "chunks")
        bounds = ("sample_timeout_s", "worker_memory_mib", "prefetch", "max_bad_in_a_row")
        rules = {POSITIVE: (*sizes, *bounds, "shard_cache_gib"), NOT_NEGATIVE: ("workers",)}
        return found + broken(self, "data.", rules)


def mixture_counts(sources: Sequence[SourceConfig], global_batch: int) -> list[int]:
    """Samples of each source in every global batch: largest remainders of the shares."""
    total = sum(source.share for source in sources)
    exact = [global_batch * source.share / total for source in sources]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: global_batch - sum(counts)]:
        counts[i] += 1
    return counts
