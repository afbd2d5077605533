"""Still pictures, decoded by Pillow: (H, W, 3) uint8 RGB."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ovtrain.schema.errors import MediaError

Pixels = npt.NDArray[np.uint8]
MAX_PIXELS = 80_000_000
ORIENTATION = 0x0112
"""EXIF tag; values from 5 on exchange width and height."""
NOT_A_PICTURE = (
    *(UnidentifiedImageError, Image.DecompressionBombError, OSError, EOFError, ValueError),
    *(SyntaxError, OverflowError, struct.error, zlib.error),
)
"""What Pillow raises of damaged files."""


def picture_header(data: bytes, where: str) -> tuple[str, tuple[int, int]]:
    """Format and (height, width), upright; nothing is decoded. Raises MediaError."""
    with _opened(data, where) as image:
        turned = orientation(image) >= 5
        size = (image.width, image.height) if turned else (image.height, image.width)
        return (image.format or "").lower(), size


def is_plain_jpeg(data: bytes, where: str) -> bool:
    """Whether a picture is a JPEG that decodes to what is to be seen: RGB or grey, not turned.
    Raises MediaError."""
    with _opened(data, where) as image:
        return (image.format, orientation(image)) == ("JPEG", 1) and image.mode in ("RGB", "L")


def orientation(image: Image.Image) -> int:
    """1 to 8, 1 = upright."""
    found = image.getexif().get(ORIENTATION, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def decode_image(data: bytes, where: str, *, upright: bool = False) -> Pixels:
    """JPEG or PNG -> (H, W, 3) uint8 RGB at its own size; ``upright``: turned as its EXIF data say.
    Raises MediaError."""
    with _opened(data, where) as image:
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image.convert("RGB"))


@contextmanager
def _opened(data: bytes, where: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                found = f"too large a picture ({image.width} x {image.height})"
                raise MediaError(where, found, allowed=f"{MAX_PIXELS:,} pixels")
            yield image
    except MediaError:
        raise
    except NOT_A_PICTURE as error:
        raise MediaError(where, f"not a readable picture ({error})") from error
