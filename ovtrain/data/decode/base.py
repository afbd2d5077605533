"""Pictures: the Protocol of decoders that take many, and the plain one that they are held to.

``ImageDecoder``: JPEGs -> (H, W, 3) uint8 RGB each, at the picture side asked for (short side
resized, centre cropped).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ovtrain.schema.errors import MediaError

Pixels = npt.NDArray[np.uint8]
MAX_PIXELS = 80_000_000
MOST_LENGTHS = 100
"""Long side over short side."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Not all that Pillow knows: some of it runs other programs."""
NOT_A_PICTURE = (
    *(OSError, EOFError, ValueError, SyntaxError, OverflowError, struct.error, zlib.error),
    TypeError,
    Warning,  # where warnings are errors
)
"""What Pillow raises of damaged files."""
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class ImageDecoder(Protocol):
    """A batch in, one picture or one MediaError per JPEG out, in order."""

    def __call__(
        self, data: Sequence[bytes], where: Sequence[str]
    ) -> list[Pixels | MediaError]: ...


def decode_image(data: bytes, where: str, *, upright: bool = False) -> Pixels:
    """JPEG or PNG -> (H, W, 3) uint8 RGB at its own size; ``upright``: turned as its EXIF data say.
    Raises MediaError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, where)
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(image.convert("RGB"))
    except MediaError:
        raise
    except BOMB as error:
        raise MediaError(where, f"too large a picture ({error})") from error
    except UnidentifiedImageError as error:
        found = "not a readable picture (of no known format)"
        raise MediaError(where, found, allowed=", ".join(FORMATS)) from error
    except NOT_A_PICTURE as error:
        raise MediaError(where, f"not a readable picture ({error})") from error


def _check_size(image: Image.Image, where: str) -> None:
    """Before a line of it is decoded. Raises MediaError."""
    size, sides = f"({image.width} x {image.height})", sorted((image.width, image.height))
    if sides[0] * sides[1] > MAX_PIXELS:
        found = f"too large a picture {size}"
        raise MediaError(where, found, allowed=f"{MAX_PIXELS:,} pixels")
    if sides[1] > MOST_LENGTHS * sides[0]:
        found = f"too long a picture {size}"
        raise MediaError(where, found, allowed=f"sides up to 1:{MOST_LENGTHS}")


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


class PillowImages:
    """The plain image decoder: one picture at a time, on the CPU."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, data: Sequence[bytes], where: Sequence[str]) -> list[Pixels | MediaError]:
        return [self._one(d, w) for d, w in zip(data, where, strict=True)]

    def _one(self, data: bytes, where: str) -> Pixels | MediaError:
        try:
            return fit(decode_image(data, where), self.size)
        except MediaError as error:
            return error
