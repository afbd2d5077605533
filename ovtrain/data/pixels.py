"""Pixels of pictures to patches: three loops, native where the extension is built.

    resample(picture, box, shape)    a part of a picture, at another size
    gather(picture, places, ...)     patches out of one picture
    recolour(patches, matrix)        an affine map of their colours

Each has a reference here (``*_reference``, Pillow and numpy). ``gather`` and ``recolour`` equal
theirs bit for bit. ``resample`` is within one level of Pillow, which rounds between rows and
columns. No torch: a loader's workers import this. N patches of side p.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

try:
    from ovtrain.data import _native  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    _native = None
    logging.getLogger(__name__).warning(
        "the native extension is absent; patches are cut by numpy and pictures resized by Pillow, "
        "several times slower. Install ovtrain with a C++17 compiler to have it"
    )

Pixels = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
ColourMap = npt.NDArray[np.float64]


class Box(NamedTuple):
    """A part of a picture, in pixels and parts of pixels."""

    top: float
    left: float
    height: float
    width: float


def resample(picture: Pixels, box: Box, shape: tuple[int, int]) -> Pixels:
    """(H, W, 3) -> (*shape, 3): ``box`` of it under a triangle filter that is as wide as two pixels
    of what is made, or of the picture where those are larger (Pillow's BILINEAR, "linear with
    antialiasing" elsewhere). The filter reads across the box's edges, not the picture's."""
    if box == (0, 0, *shape) and picture.shape[:2] == shape:
        return picture
    if _native is None:
        return resample_reference(picture, box, shape)
    return _native.resample(picture, *box, *shape)


def resample_reference(picture: Pixels, box: Box, shape: tuple[int, int]) -> Pixels:
    """``resample`` by Pillow."""
    top, left, height, width = box
    corners = (left, top, min(left + width, picture.shape[1]), min(top + height, picture.shape[0]))
    image = Image.fromarray(picture)
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=corners))


def gather(
    picture: Pixels,
    places: IntArray,
    patch: int,
    out: Pixels,
    offset: tuple[int, int] = (0, 0),
    *,
    mirrored: bool = False,
) -> None:
    """(H, W, 3), whose rows may lie apart, and (N, 3) places (t is not looked at) -> ``out``
    (N, 3*p*p), channel-major. The picture is moved by ``offset`` (dy, dx) pixels first, its edges
    repeated; each patch is mirrored (left to right) where asked for."""
    if _native is None:
        out[:] = gather_reference(picture[None], places * [0, 1, 1], patch, offset, mirrored)
    else:
        places = np.ascontiguousarray(places, np.int64)
        _native.gather(picture, places, patch, *offset, mirrored, out)


def gather_reference(
    pictures: Pixels,
    places: IntArray,
    patch: int,
    offset: tuple[int, int] = (0, 0),
    mirrored: bool = False,
) -> Pixels:
    """``gather`` in numpy, of (T, H, W, 3) pictures."""
    height, width = pictures.shape[1:3]
    t, h, w = places.T
    rows = np.clip(h[:, None] * patch + np.arange(patch) - offset[0], 0, height - 1)
    columns = np.clip(w[:, None] * patch + np.arange(patch) - offset[1], 0, width - 1)
    if mirrored:
        columns = columns[:, ::-1]
    found = pictures[t[:, None, None], rows[:, :, None], columns[:, None]]
    return found.transpose(0, 3, 1, 2).reshape(len(places), -1)


def recolour(patches: Pixels, matrix: ColourMap) -> None:
    """(N, 3*p*p) in place: rgb -> matrix[:, :3] @ rgb + matrix[:, 3], rounded, halves up, and
    clipped to 0 and 255."""
    if _native is None:
        patches[:] = recolour_reference(patches, matrix)
    else:
        _native.recolour(patches, matrix)


def recolour_reference(patches: Pixels, matrix: ColourMap) -> Pixels:
    """``recolour`` in numpy, its sums in the same order."""
    red, green, blue = patches.reshape(len(patches), 3, -1).astype(np.float64).transpose(1, 0, 2)
    mapped = [m[0] * red + m[1] * green + m[2] * blue + m[3] + 0.5 for m in matrix]
    return np.clip(np.stack(mapped, 1), 0, 255).astype(np.uint8).reshape(patches.shape)
