"""Cut clips of T consecutive frames at seeded places and bring them to one codec, GOP and size.

Frames are turned upright, their short side is scaled to ``size``, the centre is cropped, and the
clip is encoded with the paper's HEVC settings. A file that is such a clip already passes through
unchanged. A video of fewer than T but at least MIN_FRAMES frames gives a clip of T frames sampled
uniformly (nearest index) and is marked ``resampled``.

Inputs: a file and its VideoRecord. Result: ``Clip`` with the bytes of an MP4 of T frames of
(size, size). Raises MediaError with the reason where a file gives no clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import InvalidDataError
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from data_pipelines.encode import Frames, HevcSettings, encode_clip
from data_pipelines.inventory.probe import VideoRecord, video_stream
from ovtrain.config.prepare import PrepareConfig
from ovtrain.schema.errors import ConfigError, MediaError
from ovtrain.schema.sample import key_hash

MIN_FRAMES = 8
DEFAULT_FPS = 30.0
"""Assumed where a file states no rate."""
SEEK_FRAMES = 300
"""Clips that start later are reached by seeking, earlier ones by decoding."""
MP4_SUFFIXES = (".mp4", ".m4v", ".mov")


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
    """Whether a file is already what transcoding would make of it."""
    return (
        Path(record.path).suffix.lower() in MP4_SUFFIXES
        and (record.codec, record.pix_fmt) == ("hevc", "yuv420p")
        and (record.width, record.height) == (config.size, config.size)
        and record.frames == config.frames
        and record.gop == min(config.gop, config.frames)
        and record.reordered is False
        and record.rotation == 0
        and (record.video_tracks, record.audio_tracks) == (1, 0)
    )


def cut_clips(folder: Path, record: VideoRecord, config: PrepareConfig) -> Iterator[Clip]:
    """The clips of one file, ``config.clips_per_video`` where it is long enough."""
    path = folder / record.path
    fps = record.fps or DEFAULT_FPS
    if passes_through(record, config):
        yield Clip(path.read_bytes(), 0, fps, transcoded=False)
        return
    settings = HevcSettings(config.gop, config.crf, config.preset)
    rate = Fraction(fps).limit_denominator(1001)
    for start in clip_starts(record, config):
        frames = read_frames(path, start, config.frames, fps, config.size)
        if len(frames) < config.frames and start:
            start, frames = 0, read_frames(path, 0, config.frames, fps, config.size)
        if len(frames) < MIN_FRAMES:
            raise MediaError(
                record.path, f"fewer than {MIN_FRAMES} decodable frames ({len(frames)})"
            )
        index = np.rint(np.linspace(0, len(frames) - 1, config.frames)).astype(int)
        payload = encode_clip(frames[index], rate, settings)
        resampled = len(frames) < config.frames
        yield Clip(payload, start, fps, transcoded=True, resampled=resampled)


def clip_starts(record: VideoRecord, config: PrepareConfig) -> list[int]:
    """First frames of the clips: distinct, sorted, seeded by (seed, path)."""
    places = max(record.frames - config.frames + 1, 1)
    rng = np.random.default_rng([config.seed, int(key_hash([record.path])[0])])
    count = min(config.clips_per_video, places)
    return sorted(rng.choice(places, size=count, replace=False).tolist())


def read_frames(path: Path, start: int, count: int, fps: float, size: int) -> Frames:
    """(n, size * 3 / 2, size) upright I420 frames from ``start`` on; n < count where they end.

    Damage ends the reading: the frames before it are good.
    """
    normalise = Normaliser(size)
    frames: list[Frames] = []
    with av.open(str(path)) as container:
        stream = video_stream(container, path.name)
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
