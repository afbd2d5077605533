"""Cut clips of T consecutive frames at given places and bring them to one codec, GOP and size.

Frames are turned upright, their short side is scaled to ``size``, the centre is cropped, and the
clip is encoded with the paper's HEVC settings. A file that is such a clip already passes through
unchanged, and with ``config.native`` so do streams of other coding. A place of fewer than T but at
least MIN_FRAMES frames gives a clip of T frames sampled uniformly (nearest index) and is marked
``resampled``.

Inputs: a file's VideoRecord and a Place. Result: ``Clip`` with the bytes of an MP4 of T frames of
(size, size). Raises MediaError with the reason where a file gives no clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.error import InvalidDataError
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from data_pipelines.encode import Frames, HevcSettings, encode_clip
from data_pipelines.inventory.probe import VideoRecord, video_stream
from data_pipelines.plan import DEFAULT_FPS, Place
from data_pipelines.remux import remux
from ovtrain.config.prepare import PrepareConfig
from ovtrain.schema.errors import ConfigError, MediaError

MIN_FRAMES = 8
SEEK_FRAMES = 300
"""Clips that start later are reached by seeking, earlier ones by decoding."""
MP4_SUFFIXES = (".mp4", ".m4v", ".mov")
NATIVE_CODECS = ("hevc", "h264")
"""Those whose vectors and residuals are read from the stream."""


@dataclass(frozen=True)
class Clip:
    """payload: an MP4; start: its first frame in the file; transcoded: False = passed through."""

    payload: bytes
    start: int
    fps: float
    transcoded: bool
    resampled: bool = False


def check_encodable(config: PrepareConfig) -> None:
    """Raise ConfigError where the encoder cannot take the picture size."""
    if config.size % 4:
        raise ConfigError(f"size={config.size}", "not a multiple of 4", fix="use 112 or 224")


def passes_through(record: VideoRecord, config: PrepareConfig) -> bool:
    """Whether a file is already what transcoding would make of it or, with ``config.native``, a
    clip of the right size in a coding of its own."""
    return (
        Path(record.path).suffix.lower() in MP4_SUFFIXES
        and _right_picture(record, config)
        and record.frames == config.frames
        and (record.video_tracks, record.audio_tracks) == (1, 0)
        and (config.native or _papers_coding(record, config))
    )


def _right_picture(record: VideoRecord, config: PrepareConfig) -> bool:
    return (
        record.codec in NATIVE_CODECS
        and (record.width, record.height) == (config.size, config.size)
        and (record.pix_fmt, record.rotation) == ("yuv420p", 0)
    )


def _papers_coding(record: VideoRecord, config: PrepareConfig) -> bool:
    gop = min(config.gop, config.frames)
    return (record.codec, record.gop, record.reordered) == ("hevc", gop, False)


def cut_clip(folder: Path, record: VideoRecord, place: Place, config: PrepareConfig) -> Clip:
    """The clip of a file at ``place``. Raises MediaError."""
    if place.start == 0 and place.frames >= config.frames and passes_through(record, config):
        fps = record.fps or DEFAULT_FPS
        return Clip(record.media.read(folder), 0, fps, transcoded=False)
    native = _native(folder, record, place, config) if config.native else None
    return native or _transcoded(folder, record, place, config)


def _transcoded(folder: Path, record: VideoRecord, place: Place, config: PrepareConfig) -> Clip:
    fps, start, wanted = record.fps or DEFAULT_FPS, place.start, min(place.frames, config.frames)
    frames = read_frames(record.media.source(folder), start, wanted, fps, config.size)
    if len(frames) < wanted and start and place.elsewhere:
        start = 0
        frames = read_frames(record.media.source(folder), 0, wanted, fps, config.size)
    if len(frames) < MIN_FRAMES:
        raise MediaError(record.path, f"fewer than {MIN_FRAMES} decodable frames ({len(frames)})")
    index = np.rint(np.linspace(0, len(frames) - 1, config.frames)).astype(int)
    settings = HevcSettings(config.gop, config.crf, config.preset)
    payload = encode_clip(frames[index], Fraction(fps).limit_denominator(1001), settings)
    resampled = len(frames) < config.frames
    return Clip(payload, start, fps, transcoded=True, resampled=resampled)


def _native(folder: Path, record: VideoRecord, place: Place, config: PrepareConfig) -> Clip | None:
    """The clip that begins at the key frame at or before ``place``, in the stream's own coding;
    None where that cannot be cut out: other pictures, reordered or too few frames."""
    if not _right_picture(record, config) or record.reordered is not False:
        return None
    if place.frames < config.frames:
        return None
    found = remux(record.media.source(folder), place.start, config.frames)
    return found and Clip(found.payload, found.start, record.fps or DEFAULT_FPS, transcoded=False)


def read_frames(
    media: Path | str | BinaryIO, start: int, count: int, fps: float, size: int
) -> Frames:
    """(n, size * 3 / 2, size) upright I420 frames from ``start`` on; n < count where they end.

    Damage ends the reading: the frames before it are good.
    """
    normalise = Normaliser(size)
    frames: list[Frames] = []
    with av.open(str(media) if isinstance(media, Path) else media, "r") as container:
        stream = video_stream(container, str(media))
        try:
            for frame in _frames_from(container, stream, start, fps):
                frames.append(normalise(frame, stream.sample_aspect_ratio))
                if len(frames) == count:
                    break
        except InvalidDataError:
            pass  # the caller sees how many frames there are and says so
    return np.stack(frames) if frames else np.empty((0, size * 3 // 2, size), np.uint8)


def _frames_from(
    container: InputContainer, stream: VideoStream, start: int, fps: float
) -> Iterator[av.VideoFrame]:
    base = stream.time_base
    if start < SEEK_FRAMES or base is None:
        for index, frame in enumerate(container.decode(stream)):
            if index >= start:
                yield frame
        return
    first = int(start / fps / base) + (stream.start_time or 0)
    container.seek(first, stream=stream)
    half = int(0.5 / fps / base)
    for frame in container.decode(stream):
        if frame.pts is not None and frame.pts >= first - half:
            yield frame


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
