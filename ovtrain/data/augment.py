"""Augmentation of one sample, drawn from the sample's own generator.

Pictures (T, H, W, 3) uint8; N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ovtrain.config.data import AugmentConfig
from ovtrain.data.decode.base import Pixels


@dataclass(frozen=True)
class Augmentation:
    """One draw: luminance factor, picture offset (dy, dx) in pixels."""

    gain: float
    offset: tuple[int, int]

    @classmethod
    def draw(cls, config: AugmentConfig, rng: np.random.Generator) -> Augmentation:
        gain = 1 + config.gain * rng.uniform(-1, 1)
        dy, dx = rng.integers(-config.shift, config.shift + 1, size=2)
        return cls(gain, (int(dy), int(dx)))

    def __call__(self, pictures: Pixels) -> Pixels:
        """Moved by the offset (edges repeat), then scaled and clipped."""
        height, width = pictures.shape[1:3]
        if self.offset != (0, 0):
            rows = np.clip(np.arange(height) - self.offset[0], 0, height - 1)
            columns = np.clip(np.arange(width) - self.offset[1], 0, width - 1)
            pictures = pictures[:, rows[:, None], columns]
        if self.gain != 1:
            table = np.clip(np.arange(256) * self.gain + 0.5, 0, 255).astype(np.uint8)
            pictures = table[pictures]
        return pictures


def kept_tokens(count: int, keep: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sorted rows of the tokens that stay; at least one."""
    kept = max(1, round(count * keep))
    if kept >= count:
        return np.arange(count)
    return np.sort(rng.permutation(count)[:kept])
