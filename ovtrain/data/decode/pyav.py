"""Clip reader on PyAV: a thread per clip, a reused reformatter, only wanted frames converted."""

from __future__ import annotations

import io
from collections.abc import Sequence

import av
import av.error
import av.video.reformatter
import numpy as np

from ovtrain.data.decode.base import Pixels
from ovtrain.schema.errors import MediaError


def decode_clip(data: bytes, where: str, indices: Sequence[int] | None = None) -> Pixels:
    """Encoded clip -> (T, H, W, 3) uint8 RGB, T all frames or ``len(indices)``.

    ``indices`` are frame numbers in presentation order and may repeat. Raises MediaError where the
    clip does not decode or is shorter than an index asks for.
    """
    wanted = None if indices is None else set(indices)
    last = None if indices is None else max(indices)
    frames: dict[int, Pixels] = {}
    reformatter = av.video.reformatter.VideoReformatter()
    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(stream)):
                if wanted is None or number in wanted:
                    rgb = reformatter.reformat(frame, format="rgb24")
                    frames[number] = np.asarray(rgb.to_ndarray(), dtype=np.uint8)
                if number == last:
                    break
    except (av.error.FFmpegError, IndexError) as error:
        raise MediaError(where, f"does not decode ({error})") from error
    order = range(len(frames)) if indices is None else indices
    missing = [i for i in order if i not in frames]
    if missing or not frames:
        raise MediaError(where, f"has no frame {missing[0] if missing else 0}")
    return np.stack([frames[i] for i in order])
