"""Still pictures, decoded by Pillow: (H, W, 3) uint8 RGB. What is damaged, or too large to be
decoded, is a MediaError."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

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
ORIENTATION = 0x0112
"""EXIF tag; values from 5 on exchange width and height."""


class Header(NamedTuple):
    """``codec``: the format's name, ``mode``: Pillow's; size as coded; ``orientation``: EXIF's, 1
    to 8, 1 = upright."""

    codec: str
    mode: str
    height: int
    width: int
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) as it is to be seen."""
        turned = self.orientation >= 5
        return (self.width, self.height) if turned else (self.height, self.width)


def picture_header(data: bytes, where: str) -> Header:
    """What the header says; nothing is decoded."""
    with _opened(data, where) as image:
        found = image.getexif().get(ORIENTATION, 1)
        turned = found if isinstance(found, int) and 1 <= found <= 8 else 1
        return Header((image.format or "").lower(), image.mode, image.height, image.width, turned)


def decode_image(data: bytes, where: str, *, upright: bool = False) -> Pixels:
    """A picture at its own size; ``upright``: turned as its EXIF data say."""
    with _opened(data, where) as image:
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_rgb(image, where))


def _rgb(image: Image.Image, where: str) -> Image.Image:
    """As it is to be seen: sixteen bits brought to eight, what is see-through laid on white."""
    if image.mode == "F":
        raise MediaError(where, "not a readable picture (its samples are floats)")
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(deep.astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")


def check_size(width: int, height: int, where: str) -> None:
    """Before a line of a picture is decoded."""
    size, sides = f"({width} x {height})", sorted((width, height))
    if sides[0] * sides[1] > MAX_PIXELS:
        found = f"too large a picture {size}"
        raise MediaError(where, found, allowed=f"{MAX_PIXELS:,} pixels")
    if sides[1] > MOST_LENGTHS * sides[0]:
        found = f"too long a picture {size}"
        raise MediaError(where, found, allowed=f"sides up to 1:{MOST_LENGTHS}")


@contextmanager
def _opened(data: bytes, where: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image.width, image.height, where)
            yield image
    except MediaError:
        raise
    except BOMB as error:
        raise MediaError(where, f"too large a picture ({error})") from error
    except UnidentifiedImageError as error:
        found = "not a readable picture (of no known format)"
        raise MediaError(where, found, allowed=", ".join(FORMATS)) from error
    except NOT_A_PICTURE as error:
        raise MediaError(where, f"not a readable picture ({error})") from error
