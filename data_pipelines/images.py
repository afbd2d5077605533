"""Pictures as samples: picture files, reduced, and still frames of clips. JPEG payloads.

Raises MediaError where a file or a clip does not decode.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from PIL import Image

from data_pipelines.inventory.probe import video_stream
from ovtrain.codec.pictures import Pixels, decode_image, picture_header
from ovtrain.schema.errors import MediaError

STILL_QUALITY = 92


@dataclass(frozen=True)
class Picture:
    """jpeg: the payload, of ``pixels`` (H, W, 3); kept: its bytes are the file's own."""

    jpeg: bytes
    pixels: Pixels
    kept: bool


def reduced(data: bytes, where: str, side: int, quality: int) -> Picture:
    """A picture file, upright, RGB, its short side at most ``side`` (area-averaging Lanczos). A
    JPEG that is all that already keeps its bytes."""
    pixels = decode_image(data, where, upright=True)
    height, width = pixels.shape[:2]
    if min(height, width) <= side and _is_plain_jpeg(data, where):
        return Picture(data, pixels, kept=True)
    image = Image.fromarray(pixels)
    if min(height, width) > side:
        scale = side / min(height, width)
        shape = (max(side, round(width * scale)), max(side, round(height * scale)))
        image = image.resize(shape, Image.Resampling.LANCZOS)
    return Picture(_jpeg(image, quality), np.asarray(image), kept=False)


def _is_plain_jpeg(data: bytes, where: str) -> bool:
    """Whether a file decodes to what is to be seen by any decoder of JPEG: RGB or grey, upright."""
    header = picture_header(data, where)
    return (header.codec, header.orientation) == ("jpeg", 1) and header.mode in ("RGB", "L")


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def still_indices(frames: int, count: int) -> list[int]:
    """``count`` frame indices at the middles of equal parts."""
    count = min(count, frames)
    return [(2 * k + 1) * frames // (2 * count) for k in range(count)]


def still_images(clip: bytes, frames: int, count: int) -> Iterator[tuple[int, bytes]]:
    """(frame index, JPEG) of ``count`` frames of a clip."""
    wanted = still_indices(frames, count)
    if not wanted:
        return
    with av.open(io.BytesIO(clip), "r") as container:
        for index, frame in enumerate(container.decode(video_stream(container, "clip"))):
            if index in wanted:
                yield index, _jpeg(frame.to_image(), STILL_QUALITY)
            if index == wanted[-1]:
                return
    raise MediaError("clip", f"ends before frame {wanted[-1]}")
