"""Perceptual hashes: 64 bits per picture that survive recompression, rescaling and brightness.

The hash is Zauner's ("Implementation and Benchmarking of Perceptual Image Hash Functions", 2010,
3.2.1): luma, area means on 32 x 32 cells, DCT-II, the 8 x 8 coefficients of the frequencies 1 to
8, one bit each for being above their median. Shape and size of the picture do not matter.
docs/dedup.md has what it survives and what not, measured.

A flat picture (black, a fade, sensor noise) has coefficients near zero: its bits are noise or are
those of all flat pictures. It is *uninformative*, and must not be looked for by its hash.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ovtrain.codec.kernels import patch_means
from ovtrain.schema.errors import InputError

SIDE, LOW = 32, 8
CLIP_FRAMES = 4
"""Frames hashed per clip, at the middles of equal parts."""
FLAT = 4.0
"""Least standard deviation of the area means, in grey levels, of an informative picture."""
PICTURE_DISTANCE, CLIP_DISTANCE = 6, 24
"""Default distances, in bits of 64 and of 256."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601

_LINES = np.arange(SIDE)
_DCT = np.cos(np.pi / SIDE * (_LINES + 0.5) * np.arange(1, LOW + 1)[:, None])
_WEIGHTS = np.uint64(1) << np.arange(LOW * LOW, dtype=np.uint64)


class PerceptualHash(NamedTuple):
    """``words`` (k,) uint64, 64 bits a picture; whether they say something of it."""

    words: npt.NDArray[np.uint64]
    informative: bool


def picture_hash(picture: npt.NDArray[np.uint8]) -> PerceptualHash:
    """Hash, one word, of (H, W) luma or (H, W, 3) RGB. Raises InputError."""
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or 0 in picture.shape:
        raise _refused("picture", picture, "(H, W) or (H, W, 3) uint8")
    if picture.ndim == 3 and picture.shape[2] != 3:
        raise _refused("picture", picture, "(H, W) or (H, W, 3) uint8")
    luma = picture @ LUMA if picture.ndim == 3 else picture.astype(np.float32)
    height, width = luma.shape
    cells = patch_means(luma, np.linspace(0, height, SIDE + 1), np.linspace(0, width, SIDE + 1))
    if cells.std() < FLAT:
        return PerceptualHash(np.zeros(1, np.uint64), False)
    low = (_DCT @ cells.astype(np.float64) @ _DCT.T).ravel()
    word = _WEIGHTS[low > np.median(low)].sum(dtype=np.uint64)
    return PerceptualHash(np.array([word]), True)


def clip_hash(frames: npt.NDArray[np.uint8]) -> PerceptualHash:
    """Hash, CLIP_FRAMES words, of (T, H, W) luma: of the frames at the middles of equal parts.

    Informative where more than half of these frames are; a flat frame's word is 0. Raises
    InputError.
    """
    if frames.dtype != np.uint8 or frames.ndim != 3 or 0 in frames.shape:
        raise _refused("frames", frames, "(T, H, W) uint8, T from 1 on")
    places = [(2 * i + 1) * len(frames) // (2 * CLIP_FRAMES) for i in range(CLIP_FRAMES)]
    hashes = [picture_hash(frames[place]) for place in places]
    telling = sum(found.informative for found in hashes)
    words = np.concatenate([found.words for found in hashes])
    return PerceptualHash(words, 2 * telling > CLIP_FRAMES)


def _refused(where: str, found: npt.NDArray[Any], allowed: str) -> InputError:
    return InputError(where, f"{found.dtype} {found.shape}", allowed=allowed)
