"""Clip reader on PyAV: a thread per clip, a reused reformatter, only wanted frames converted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import av
import av.error
import av.video.reformatter
import numpy as np
from av.video.frame import VideoFrame

from ovtrain.codec.decoded import STRICT, Media, media_name, opened
from ovtrain.data.pixels import Pixels
from ovtrain.schema.errors import MediaError


def decode_clip(data: bytes, where: str, indices: Sequence[int] | None = None) -> Pixels:
    """Encoded clip -> (T, H, W, 3) uint8 RGB, T all frames or ``len(indices)``.

    ``indices`` are frame numbers in presentation order and may repeat. Raises MediaError where the
    clip does not decode or is shorter than an index asks for.
    """
    wanted = None if indices is None else set(indices)
    frames = dict(decode_frames(data, where, wanted))
    order = range(len(frames)) if indices is None else indices
    missing = [i for i in order if i not in frames]
    if missing or not frames:
        raise MediaError(where, f"has no frame {missing[0] if missing else 0}")
    return np.stack([frames[i] for i in order])


def quarter_turns(media: Media) -> int:
    """Quarter turns counterclockwise that make a video's pictures upright, by its metadata. Raises
    MediaError."""
    video = opened(media)
    try:
        first = next(video.container.decode(video.stream), None)
    except av.error.FFmpegError as error:
        raise MediaError(media_name(media), f"does not decode ({error})") from error
    finally:
        video.container.close()
    return round(first.rotation / 90) % 4 if first else 0


def decode_frames(
    media: Media, where: str, wanted: Collection[int] | None, expected: int = 0
) -> Iterator[tuple[int, Pixels]]:
    """(number, (H, W, 3) uint8 RGB) of the wanted frames, all with None, in presentation order, as
    they are coded; a picture's rows may lie apart. Nothing behind the last of them is decoded.
    Raises MediaError, also where the container says that there are fewer frames than
    ``expected``."""
    last = None if wanted is None else max(wanted)
    reformatter = av.video.reformatter.VideoReformatter()
    try:
        video = opened(media)
    except MediaError as error:
        raise MediaError(where, f"does not decode ({error.found})") from error
    try:
        if 0 < video.stream.frames < expected:
            raise MediaError(where, f"too few frames ({video.stream.frames} of {expected})")
        video.stream.codec_context.thread_count = 1
        video.stream.codec_context.options = STRICT
        for number, frame in enumerate(video.container.decode(video.stream)):
            if frame.is_corrupt:
                raise MediaError(where, f"does not decode (frame {number} is damaged)")
            if wanted is None or number in wanted:
                # On its own PyAV converts with as many threads as the machine has.
                yield number, _pixels(reformatter.reformat(frame, format="rgb24", threads=1))
            if number == last:
                break
    except av.error.FFmpegError as error:
        raise MediaError(where, f"does not decode ({error})") from error
    finally:
        video.container.close()


def _pixels(frame: VideoFrame) -> Pixels:
    """A packed frame's own memory, not a copy of it."""
    plane = frame.planes[0]
    shape, strides = (frame.height, frame.width, 3), (plane.line_size, 3, 1)
    return np.ndarray(shape, np.uint8, memoryview(plane), strides=strides)
