"""Patch geometry: (t, h, w) <-> flat index, tokens per frame, budget arithmetic.

``flat = t * H * W + h * W + w`` with H, W in patches, the public release's ``visible_indices``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ovtrain.schema.errors import ConfigError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PatchGrid:
    """T frames of H x W patches, each ``patch`` x ``patch`` pixels."""

    frames: int
    height: int
    width: int
    patch: int = 14

    @classmethod
    def from_pixels(cls, frames: int, height: int, width: int, patch: int = 14) -> PatchGrid:
        """Grid of ``frames`` pictures of ``height`` x ``width`` pixels.

        Raises ConfigError where a side is not a positive multiple of ``patch``.
        """
        for name, side in (("height", height), ("width", width)):
            if side <= 0 or side % patch:
                below = max(side // patch, 1) * patch
                raise ConfigError(
                    f"picture {name}={side}",
                    f"not a multiple of the patch side {patch}",
                    fix=f"use {below} or {below + patch}",
                )
        return cls(frames, height // patch, width // patch, patch)

    @property
    def tokens_per_frame(self) -> int:
        return self.height * self.width

    @property
    def size(self) -> int:
        """All patches of the clip."""
        return self.frames * self.tokens_per_frame

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.frames, self.height, self.width)

    def flat(self, positions: npt.NDArray[Any]) -> IntArray:
        """(N, 3) positions (t, h, w) -> (N,) flat indices."""
        t, h, w = np.asarray(positions, dtype=np.int64).T
        return (t * self.height + h) * self.width + w

    def positions(self, flat: npt.NDArray[Any]) -> IntArray:
        """(N,) flat indices -> (N, 3) positions (t, h, w)."""
        frame, rest = np.divmod(np.asarray(flat, dtype=np.int64), self.tokens_per_frame)
        return np.stack([frame, *np.divmod(rest, self.width)], axis=-1)

    def frame_positions(self, frame: int) -> IntArray:
        """(H*W, 3) positions of one whole frame, in raster order."""
        first = frame * self.tokens_per_frame
        return self.positions(np.arange(first, first + self.tokens_per_frame))

    def whole_frames(self, budget: int) -> int:
        """Whole frames kept under ``budget`` tokens: one below four frames' worth, else two.

        (Paper section 8: "one to two I-frames" suffice.)
        """
        return 1 if budget < 4 * self.tokens_per_frame else 2
