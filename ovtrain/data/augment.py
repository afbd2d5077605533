"""Augmentation of one sample, drawn from the sample's own generator.

Pictures are cropped and resized while they are decoded. Pixels are moved and mirrored while patches
are gathered and recoloured after (``pixels``), so that only the patches that are kept cost
anything. N tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ovtrain.config.data import AugmentConfig
from ovtrain.data.pixels import Box, ColourMap
from ovtrain.data.views import ViewPlan
from ovtrain.schema.grid import PatchGrid

LUMA = (0.299, 0.587, 0.114)
"""A pixel's grey (ITU-R BT.601)."""
MID_GREY = 127.5


@dataclass(frozen=True)
class Crop:
    """What is shown of a picture: a share of its area, of an aspect (width over height), at a place
    (down, across) between the picture's edges, 0 to 1. Where it does not fit, both of its sides
    shrink until it does. Without a share: the largest square."""

    area: float | None = None
    aspect: float = 1.0
    place: tuple[float, float] = (0.5, 0.5)

    @classmethod
    def draw(cls, config: AugmentConfig, rng: np.random.Generator) -> Crop:
        """Takes nothing from ``rng`` where there is nothing to choose. Aspects are drawn by their
        logarithm, so that tall and wide are alike."""
        if not config.crop_area:
            return cls()
        (least, most), (tall, wide) = config.crop_area, np.log(config.crop_aspect)
        area, aspect = rng.uniform(least, most), math.exp(rng.uniform(tall, wide))
        return cls(float(area), aspect, (float(rng.uniform()), float(rng.uniform())))

    def box(self, height: int, width: int) -> Box:
        """Of a picture of this size."""
        area = height * width * (1.0 if self.area is None else self.area)
        tall, wide = math.sqrt(area / self.aspect), math.sqrt(area * self.aspect)
        fit = min(1.0, height / tall, width / wide)
        tall, wide = min(tall * fit, height), min(wide * fit, width)
        return Box(self.place[0] * (height - tall), self.place[1] * (width - wide), tall, wide)


@dataclass(frozen=True)
class Augmentation:
    """One draw: luminance factor, picture offset (dy, dx) in pixels, contrast and saturation
    factors, what is shown of a picture; by default nothing changes."""

    gain: float = 1.0
    offset: tuple[int, int] = (0, 0)
    contrast: float = 1.0
    saturation: float = 1.0
    crop: Crop = Crop()

    @classmethod
    def draw(cls, config: AugmentConfig, rng: np.random.Generator) -> Augmentation:
        gain = 1 + config.gain * rng.uniform(-1, 1)
        dy, dx = rng.integers(-config.shift, config.shift + 1, size=2)
        contrast, saturation = 1 + rng.uniform(-1, 1, 2) * (config.contrast, config.saturation)
        crop = Crop.draw(config, rng)
        return cls(gain, (int(dy), int(dx)), float(contrast), float(saturation), crop)

    @property
    def colours(self) -> ColourMap | None:
        """(3, 4): what ``pixels.recolour`` does, or None for nothing. In this order: saturation
        ``grey + s (rgb - grey)``, gain ``g rgb``, contrast ``127.5 + c (rgb - 127.5)``."""
        if self.gain == self.contrast == self.saturation == 1:
            return None
        grey = (1 - self.saturation) * np.tile(LUMA, (3, 1))
        linear = self.contrast * self.gain * (self.saturation * np.eye(3) + grey)
        return np.column_stack([linear, np.full(3, MID_GREY * (1 - self.contrast))])


UNCHANGED = Augmentation()


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


def kept_tokens(count: int, keep: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sorted rows of the tokens that stay; at least one."""
    kept = max(1, round(count * keep))
    if kept >= count:
        return np.arange(count)
    return np.sort(rng.permutation(count)[:kept])
