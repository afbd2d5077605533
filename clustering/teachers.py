"""Teachers: what turns decoded frames into the features that are clustered.

A teacher sees pixels only: never class names, file names or how the data was made. Its ``name``
tells one feature space from another and is written into every store made with it.

Shape legend: T frames, H x W pixels, B samples, F the teacher's width.
Paper section 3: 8 uniformly sampled frames, MetaCLIP-H/14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ovtrain.config.cluster import ClusterConfig
from ovtrain.schema.sample import Kind

Frames = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]


class Teacher(Protocol):
    """A feature space. ``features`` may be called from several threads at once."""

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def kind(self) -> Kind: ...

    def indices(self, frames: int) -> list[int] | None:
        """Frames of a clip of ``frames`` that are to be decoded; None = all."""
        ...

    def features(self, samples: Sequence[Frames]) -> Features:
        """B arrays (T, H, W, 3) uint8 RGB -> (B, F) float32; an image has T = 1."""
        ...


def open_teacher(config: ClusterConfig, kind: Kind) -> Teacher:
    """The teacher a config names. Raises ConfigError where its weights are missing."""
    if config.teacher == "clip":
        from clustering.clip import ClipTeacher

        return ClipTeacher(config.teacher_dir, kind, config.frames)
    from clustering.descriptor import DescriptorTeacher

    return DescriptorTeacher(kind)


def uniform_indices(total: int, count: int) -> list[int]:
    """Middle frame of each of ``count`` equal spans of ``total`` frames."""
    return [int((i + 0.5) * total / count) for i in range(count)]
