"""HEVC encoding with the paper's settings (released transcode flags, GOP as in the paper).

``HevcSettings`` in yuv420p, tag hvc1. One thread, so that equal frames give equal bytes.

frames: (T, H * 3 / 2, W) uint8, planar I420 with even H and W. Result: the bytes of an MP4 file.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.container import OutputContainer
from av.video.stream import VideoStream

from ovtrain.codec.transcode import HevcSettings

Frames = npt.NDArray[np.uint8]


def encode_clip(frames: Frames, fps: Fraction, settings: HevcSettings) -> bytes:
    """Encode I420 frames at ``fps`` into an MP4 in memory."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = _hevc_stream(container, frames, fps, settings)
        for index, planes in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            # A decoded frame keeps its old type, which would force libx265 to all-intra.
            frame.pict_type = 0
            frame.pts = index
            frame.time_base = 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _hevc_stream(
    container: OutputContainer,
    frames: Frames,
    fps: Fraction,
    settings: HevcSettings,
) -> VideoStream:
    stream = container.add_stream("libx265", rate=fps, options=settings.options())
    assert isinstance(stream, VideoStream)
    stream.height = frames.shape[1] * 2 // 3
    stream.width = frames.shape[2]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.codec_tag = "hvc1"
    stream.codec_context.thread_count = 1
    return stream
