"""Augmentation of one sample, drawn from the sample's own generator.

Pixels are moved while patches are gathered (``views.gather_patches``) and lightened after, so that
only the patches that are kept cost anything. N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ovtrain.config.data import AugmentConfig
from ovtrain.data.decode.base import Pixels


@dataclass(frozen=True)
class Augmentation:
    """One draw: luminance factor, picture offset (dy, dx) in pixels; by default neither."""

    gain: float = 1.0
    offset: tuple[int, int] = (0, 0)

    @classmethod
    def draw(cls, config: AugmentConfig, rng: np.random.Generator) -> Augmentation:
        gain = 1 + config.gain * rng.uniform(-1, 1)
        dy, dx = rng.integers(-config.shift, config.shift + 1, size=2)
        return cls(gain, (int(dy), int(dx)))

    def lighten(self, pixels: Pixels) -> Pixels:
        """uint8 of any shape, scaled by the gain and clipped."""
        if self.gain == 1:
            return pixels
        table = np.clip(np.arange(256) * self.gain + 0.5, 0, 255).astype(np.uint8)
        return table[pixels]


UNCHANGED = Augmentation()


def kept_tokens(count: int, keep: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sorted rows of the tokens that stay; at least one."""
    kept = max(1, round(count * keep))
    if kept >= count:
        return np.arange(count)
    return np.sort(rng.permutation(count)[:kept])
