"""Augmentation of one sample, drawn from the sample's own generator.

Pixels are moved while patches are gathered (``views.gather_patches``) and lightened after, so that
only the patches that are kept cost anything. N tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ovtrain.config.data import AugmentConfig
from ovtrain.data.decode.base import Pixels
from ovtrain.data.views import ViewPlan
from ovtrain.schema.grid import PatchGrid


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


@dataclass(frozen=True)
class Window:
    """The part of a stored picture that is shown: ``top`` and ``left`` in patches, so that energies
    stay those of the patches they were measured on, and whether it is mirrored (left to right)."""

    top: int = 0
    left: int = 0
    mirrored: bool = False

    @classmethod
    def draw(
        cls, stored: PatchGrid, shown: PatchGrid, flip: float, rng: np.random.Generator
    ) -> Window:
        """Takes nothing from ``rng`` where there is nothing to choose."""
        rows, columns = stored.height - shown.height, stored.width - shown.width
        top = int(rng.integers(rows + 1)) if rows else 0
        left = int(rng.integers(columns + 1)) if columns else 0
        return cls(top, left, bool(flip) and rng.uniform() < flip)

    def energy(self, energy: npt.NDArray[np.uint16], shown: PatchGrid) -> npt.NDArray[np.uint16]:
        """(T, H, W) of the stored picture -> (T, h, w) of what is shown, not mirrored yet."""
        rows = slice(self.top, self.top + shown.height)
        return energy[:, rows, self.left : self.left + shown.width]

    def place(self, plan: ViewPlan, shown: PatchGrid) -> ViewPlan:
        """A plan on what is shown, its places moved to the stored picture, its positions mirrored
        where the window is."""
        where = plan.where + np.array([0, self.top, self.left])
        positions = plan.positions.copy()
        if self.mirrored:
            positions[:, 2] = shown.width - 1 - positions[:, 2]
        return ViewPlan(where, positions, plan.filled)

    def turn(self, patches: Pixels) -> Pixels:
        """(N, 3*p*p), each mirrored where the window is."""
        if not self.mirrored:
            return patches
        side = math.isqrt(patches.shape[1] // 3)
        return patches.reshape(-1, side)[:, ::-1].reshape(patches.shape)


UNCHANGED = Augmentation()


def kept_tokens(count: int, keep: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sorted rows of the tokens that stay; at least one."""
    kept = max(1, round(count * keep))
    if kept >= count:
        return np.arange(count)
    return np.sort(rng.permutation(count)[:kept])
