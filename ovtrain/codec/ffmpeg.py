"""H.264 signals from FFmpeg's exported motion vectors (`h264-export`).

The motion is the stream's own, in blocks of 8 x 8 and larger. What the export leaves out is filled
in and is an estimate: it names no reference picture, only past (list 0) or future (list 1), so the
reference delta is UNKNOWN_DELTA, and the residual is the decoded luma minus the compensated luma of
the nearest I- or P-frame on that side. Where the slice headers let a frame's blocks choose among
several references, ``several_references`` says so: such a block may have meant another frame, and
its residual is then too large. Intra blocks of a predicted frame carry no vector; their residual is
the plain difference to the past frame. I-frames carry neither motion nor residual.

Records of the export: ``dst`` is the block's centre; motion / motion_scale pixels lead from the
block to its reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ovtrain.codec.bitstream import UNKNOWN_DELTA, CodecSignals, Origin, Request
from ovtrain.codec.decoded import DecodedFrame, DecodedSignals, LumaReader, Media, Video
from ovtrain.codec.h264_headers import H264Headers
from ovtrain.codec.kernels import Luma, compensate, spread
from ovtrain.schema.errors import CodecError

ORIGIN: Origin = "h264-export"
MAX_WAIT = 16
"""B-frames held back until their future reference is known; H.264 reorders at most 16 pictures."""

IntArray = npt.NDArray[np.int16]


def open_h264(media: Media | Video, request: Request = Request()) -> DecodedSignals:
    """Exported signals of an H.264 video. Raises MediaError, CodecError."""
    reader = LumaReader(media, vectors=True)
    if reader.codec != "h264":
        reader.close()
        raise CodecError(reader.where, f"is {reader.codec}", allowed="h264 for h264-export")
    reader.inspect = H264Headers(reader.extradata).active_references
    return DecodedSignals(reader, ORIGIN, exported, request)


def exported(frames: Iterable[DecodedFrame]) -> Iterator[CodecSignals]:
    """One set of signals per frame; B-frames wait for the next I- or P-frame."""
    past: Luma | None = None
    waiting: list[DecodedFrame] = []
    for frame in frames:
        if frame.type == "B" and len(waiting) < MAX_WAIT:
            waiting.append(frame)
            continue
        yield from (_signals(b, past, frame.luma) for b in waiting)
        waiting.clear()
        yield _signals(frame, past, None)
        past = frame.luma
    yield from (_signals(b, past, None) for b in waiting)


def _signals(frame: DecodedFrame, past: Luma | None, future: Luma | None) -> CodecSignals:
    height, width = frame.luma.shape
    motion, used = rasterise(frame.vectors, -(-height // 4), -(-width // 4))
    delta = np.where(used, np.int16(UNKNOWN_DELTA), np.int16(0))
    past, future = (future if past is None else past), (past if future is None else future)
    if frame.type == "I" or past is None or future is None:
        residual = np.zeros((height, width), np.int16)
    else:
        prediction = _predict(past, future, motion, used)
        residual = np.subtract(frame.luma, prediction, dtype=np.int16)
    return CodecSignals(
        type=frame.type,
        pts=frame.pts,
        packet_bytes=frame.packet_bytes,
        motion=motion,
        reference_delta=delta,
        residual=residual,
        origin=ORIGIN,
        parse_ok=frame.ok,
        several_references=None if frame.inspected is None else frame.inspected > 1,
    )


def rasterise(
    vectors: npt.NDArray[Any] | None, down: int, across: int
) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Export records -> motion (down, across, 2, 2) quarter-pel and used (down, across, 2)."""
    motion = np.zeros((down, across, 2, 2), np.int16)
    used = np.zeros((down, across, 2), np.bool_)
    if vectors is None or not len(vectors):
        return motion, used
    limits = np.iinfo(np.int16)
    scale = np.maximum(vectors["motion_scale"], 1).astype(np.float64)
    for index, axis in enumerate(("motion_x", "motion_y")):
        quarter = np.rint(vectors[axis] * 4 / scale).clip(limits.min, limits.max)
        _paint(vectors, quarter, motion[..., index])
    _paint(vectors, np.ones(len(vectors)), used)
    return motion, used


def _paint(vectors: npt.NDArray[Any], values: npt.NDArray[Any], canvas: npt.NDArray[Any]) -> None:
    """Write each block's value over the 4 x 4 cells it covers: canvas (down, across, 2 lists)."""
    down, across = canvas.shape[:2]
    sizes = vectors["w"].astype(np.int64) << 8 | vectors["h"]
    for size in np.unique(sizes):
        of_size = sizes == size
        block, value = vectors[of_size], values[of_size, None, None]
        width, height = int(size) >> 8, int(size) & 255
        top = (block["dst_y"].astype(np.int64) - height // 2) >> 2
        left = (block["dst_x"].astype(np.int64) - width // 2) >> 2
        rows = top[:, None, None] + np.arange(max(height // 4, 1))[:, None]
        columns = left[:, None, None] + np.arange(max(width // 4, 1))
        side = (block["source"] > 0).astype(np.int64)[:, None, None]
        rows, columns, side, value = np.broadcast_arrays(rows, columns, side, value)
        inside = (rows >= 0) & (rows < down) & (columns >= 0) & (columns < across)
        canvas[rows[inside], columns[inside], side[inside]] = value[inside]


def _predict(past: Luma, future: Luma, motion: IntArray, used: npt.NDArray[np.bool_]) -> Luma:
    """(H, W) prediction: past, future, or their mean, as each block's lists say."""
    prediction = compensate(past, motion[..., 0, :])
    if not used[..., 1].any():
        return prediction
    later = compensate(future, motion[..., 1, :])
    height, width = past.shape
    both = spread(used[..., 0] & used[..., 1], 4, height, width)
    later_only = spread(used[..., 1] & ~used[..., 0], 4, height, width)
    mean = ((prediction.astype(np.uint16) + later + 1) >> 1).astype(np.uint8)
    return np.where(both, mean, np.where(later_only, later, prediction))
