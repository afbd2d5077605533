"""Pictures: encoded bytes -> RGB pixels, whole or the part that is shown.

libjpeg-turbo decodes JPEGs, at a fraction of their size where that suffices; Pillow decodes what it
refuses and everything else, and is the judge of damaged files. Raises MediaError.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from ovtrain.codec.pictures import check_size, picture_header
from ovtrain.codec.pictures import decode_image as decode_by_pillow
from ovtrain.data.pixels import Box, Pixels, resample

JPEG_COLOURS = ("YCbCr", "Gray", "RGB")
"""What libjpeg-turbo turns into RGB as Pillow does."""
JPEG_SCALES = (8, 4, 2)
"""How many times smaller libjpeg-turbo can decode with vector instructions."""


def decode_image(data: bytes, where: str, *, upright: bool = False) -> Pixels:
    """A picture -> (H, W, 3) uint8 RGB at its own size; ``upright``: turned as its EXIF data say.
    Raises MediaError."""
    _, turbo = _checked_size(data, where)
    if turbo and not upright and (pixels := _turbo(data)) is not None:
        return pixels
    return decode_by_pillow(data, where, upright=upright)


def decode_part(
    data: bytes, where: str, part: Callable[[int, int], Box], shape: tuple[int, int]
) -> Pixels:
    """The ``part`` of a picture of (height, width) that is shown, resampled to (*shape, 3).

    A JPEG is decoded at a half, a quarter or an eighth of its size where the part still is no
    smaller than ``shape`` then. Raises MediaError.
    """
    (height, width), turbo = _checked_size(data, where)
    box = part(height, width)
    shrunk = min(box.height / shape[0], box.width / shape[1])
    scale = next((scale for scale in JPEG_SCALES if scale <= shrunk), 1)
    pixels = _turbo(data, -(-height // scale), -(-width // scale)) if turbo else None
    if pixels is None:
        pixels = decode_by_pillow(data, where)
    down, across = pixels.shape[0] / height, pixels.shape[1] / width
    box = Box(box.top * down, box.left * across, box.height * down, box.width * across)
    return resample(pixels, box, shape)


def picture_size(data: bytes, where: str) -> tuple[int, int]:
    """(height, width) of a picture as coded. Raises MediaError."""
    return _checked_size(data, where)[0]


def _checked_size(data: bytes, where: str) -> tuple[tuple[int, int], bool]:
    """(height, width), and whether libjpeg-turbo decodes it as Pillow does."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        header = picture_header(data, where)
        return (header.height, header.width), False
    height, width = int(height), int(width)
    check_size(width, height, where)
    return (height, width), colours in JPEG_COLOURS


def _turbo(data: bytes, height: int = 0, width: int = 0) -> Pixels | None:
    """At least (height, width); None where it is for Pillow to decide."""
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:  # any warning of the library, too
        return None


def fit(picture: Pixels, size: int) -> Pixels:
    """Short side to ``size`` (bicubic), centre crop to (size, size, 3)."""
    height, width = picture.shape[:2]
    if (height, width) == (size, size):
        return picture
    scale = size / min(height, width)
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    resized = np.asarray(Image.fromarray(picture).resize(shape, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    return resized[top : top + size, left : left + size]
