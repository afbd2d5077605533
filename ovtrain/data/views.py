"""The views: rules that turn a decoded clip or picture into patches with positions.

Each video view first says which (t, h, w) it wants; the pixels are gathered after, so that only
needed frames are decoded. N tokens, p patch side.

codec   whole frames + global top-K energies (``ovtrain.codec.selection``), t = the patch's frame.
frames  one frame per chunk, all patches, t = its frame (paper section 2.5, section 8).
tiling  the same frames stacked vertically as one picture: t = 0, h runs on.
image   t = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ovtrain.codec.selection import chunk_frames, select
from ovtrain.data.pixels import IntArray, Pixels
from ovtrain.schema.grid import PatchGrid

VIEWS = ("codec", "frames", "tiling", "image")
CODEC, FRAMES, TILING, IMAGE = range(4)


@dataclass(frozen=True)
class ViewPlan:
    """where (N, 3): the patch's place in the clip, in rising t; positions (N, 3): what the encoder
    is told."""

    where: IntArray
    positions: IntArray
    filled: int = 0

    def keep(self, rows: IntArray) -> ViewPlan:
        return ViewPlan(self.where[rows], self.positions[rows], self.filled)


def codec_view(energy: npt.NDArray[np.uint16], grid: PatchGrid, budget: int) -> ViewPlan:
    """``budget`` tokens of a clip from its (T, H, W) energies."""
    selection = select(energy, budget)
    where = grid.positions(selection.flat)
    return ViewPlan(where, where, selection.filled)


def frames_view(grid: PatchGrid, chunks: int, rng: np.random.Generator | None) -> ViewPlan:
    """All patches of one frame per chunk: random in training, the middle one without ``rng``."""
    frames = chunk_frames(grid.frames, chunks, rng)
    where = np.concatenate([grid.frame_positions(int(t)) for t in frames])
    return ViewPlan(where, where)


def tiling_view(grid: PatchGrid, chunks: int, rng: np.random.Generator | None) -> ViewPlan:
    """The frames view as one tall picture."""
    where = frames_view(grid, chunks, rng).where
    positions = where.copy()
    tile = np.repeat(np.arange(chunks), grid.tokens_per_frame)
    positions[:, 0] = 0
    positions[:, 1] += tile * grid.height
    return ViewPlan(where, positions)


def image_view(grid: PatchGrid) -> ViewPlan:
    """All patches of one picture."""
    where = grid.frame_positions(0)
    return ViewPlan(where, where)


def gather_patches(pictures: Pixels, where: IntArray, patch: int) -> Pixels:
    """(T, H, W, 3) uint8 and (N, 3) places -> (N, 3*p*p) uint8, channel-major."""
    frames, height, width, _ = pictures.shape
    t, h, w = where.T
    tiles = pictures.reshape(frames, height // patch, patch, width // patch, patch, 3)
    return tiles[t, h, :, w].transpose(0, 3, 1, 2).reshape(len(where), -1)
