"""The frames of a clip, read out of a video: upright I420 of one size.

Frames are counted, so that a place is a frame's number; places of a list are times, and are looked
for by the frames' own. Late places are reached by seeking, where that leads to a key frame before
them: what lands behind, or cannot seek, is decoded from its start.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from data_pipelines.inventory.probe import VideoRecord, video_stream
from data_pipelines.plan import DEFAULT_FPS, Place

Frames = npt.NDArray[np.uint8]
SEEK_FRAMES = 300
"""Clips that start later are reached by seeking, earlier ones by decoding."""


class _Lost(Exception):
    """Seeking led behind the place, or nowhere."""


def read_frames(folder: Path, record: VideoRecord, place: Place, count: int, size: int) -> Frames:
    """(n, size * 3 / 2, size) upright I420 frames from ``place`` on; n < count where they end.

    Damage ends the reading: the frames before it are good.
    """
    late = place.start >= SEEK_FRAMES
    # Of a variable rate a frame's number does not tell its time.
    if late and (place.begin is not None or not record.variable_rate):
        try:
            return _read(folder, record, place, count, size, seek=True)
        except _Lost:
            pass
    return _read(folder, record, place, count, size, seek=False)


def _read(
    folder: Path, record: VideoRecord, place: Place, count: int, size: int, *, seek: bool
) -> Frames:
    normalise = Normaliser(size)
    frames: list[Frames] = []
    with av.open(record.media.source(folder), "r") as container:
        stream = video_stream(container, record.path)
        fps = record.fps or DEFAULT_FPS
        found = _sought(container, stream, place, fps) if seek else _counted(container, stream)
        try:
            for number, time, frame in found:
                at = number / fps if time is None else time
                if place.end is not None and at >= place.end:
                    break
                if not _is_behind(place, number, at, fps, seek):
                    continue
                frames.append(normalise(frame, stream.sample_aspect_ratio))
                if len(frames) == count:
                    break
        except InvalidDataError:
            pass  # the caller sees how many frames there are and says so
    return np.stack(frames) if frames else np.empty((0, size * 3 // 2, size), np.uint8)


def _is_behind(place: Place, number: int, at: float, fps: float, sought: bool) -> bool:
    """Whether a frame is the clip's first or one behind it."""
    if place.begin is None and not sought:
        return number >= place.start
    begin = place.start / fps if place.begin is None else place.begin
    return at >= begin - 0.5 / fps


Timed = tuple[int, float | None, av.VideoFrame]
"""Number among what is decoded, seconds from the stream's start, frame."""


def _counted(container: InputContainer, stream: VideoStream) -> Iterator[Timed]:
    for number, frame in enumerate(container.decode(stream)):
        yield number, _seconds(frame, stream), frame


def _seconds(frame: av.VideoFrame, stream: VideoStream) -> float | None:
    if frame.pts is None or stream.time_base is None:
        return None
    return float((frame.pts - (stream.start_time or 0)) * stream.time_base)


def _sought(
    container: InputContainer, stream: VideoStream, place: Place, fps: float
) -> Iterator[Timed]:
    """Raises _Lost before the first frame."""
    target = place.start / fps if place.begin is None else place.begin
    if stream.time_base is None:
        raise _Lost
    try:
        container.seek(int(target / stream.time_base) + (stream.start_time or 0), stream=stream)
        decoded = container.decode(stream)
        first = next(decoded)
    except (FFmpegError, StopIteration):
        raise _Lost from None
    began = _seconds(first, stream)
    if began is None or began > target:
        raise _Lost
    yield 0, began, first
    for number, frame in enumerate(decoded, 1):
        time = _seconds(frame, stream)
        if time is not None:
            yield number, time, frame


class Normaliser:
    """Decoded frame -> (size * 3 / 2, size) uint8: limited range, scaled, upright, centre crop."""

    def __init__(self, size: int) -> None:
        self._size, self._reformatter = size, VideoReformatter()

    def __call__(self, frame: av.VideoFrame, pixel_aspect: Fraction | None) -> Frames:
        wide = frame.width * float(pixel_aspect or 1)
        scale = self._size / min(wide, frame.height)
        width, height = (max(self._size, round(s * scale / 2) * 2) for s in (wide, frame.height))
        scaled = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="yuv420p",
            interpolation=Interpolation.AREA if scale < 1 else Interpolation.BICUBIC,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        turns = round(frame.rotation / 90) % 4
        return self._upright(np.asarray(scaled.to_ndarray(), np.uint8), width, height, turns)

    def _upright(self, i420: Frames, width: int, height: int, turns: int) -> Frames:
        """Crop the centre of each plane, turn it counterclockwise, and pack I420 again."""
        size, quarter = self._size, width * height // 4
        flat = i420.reshape(-1)
        left, top = (width - size) // 4 * 2, (height - size) // 4 * 2
        parts: list[Frames] = []
        for offset, shrink in ((0, 1), (4 * quarter, 2), (5 * quarter, 2)):
            rows, columns = height // shrink, width // shrink
            plane = flat[offset : offset + rows * columns].reshape(rows, columns)
            x, y, side = left // shrink, top // shrink, size // shrink
            crop = np.rot90(plane[y : y + side, x : x + side], turns)
            parts.append(np.ascontiguousarray(crop).reshape(-1, size))
        return np.concatenate(parts)
