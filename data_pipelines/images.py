"""Still frames of clips as an image source: JPEG payloads with the same sample schema.

Frames lie at the middles of equal parts of the clip. Raises MediaError where a clip does not
decode.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import av

from data_pipelines.inventory.probe import video_stream
from ovtrain.schema.errors import MediaError

QUALITY = 92


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
                buffer = io.BytesIO()
                frame.to_image().save(buffer, "JPEG", quality=QUALITY)
                yield index, buffer.getvalue()
            if index == wanted[-1]:
                return
    raise MediaError("clip", f"ends before frame {wanted[-1]}")
