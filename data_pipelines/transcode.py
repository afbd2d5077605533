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

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from data_pipelines.encode import HevcSettings, encode_clip
from data_pipelines.frames import read_frames
from data_pipelines.inventory.probe import VideoRecord
from data_pipelines.plan import DEFAULT_FPS, Place
from data_pipelines.remux import remux
from ovtrain.config.prepare import PrepareConfig
from ovtrain.schema.errors import ConfigError, MediaError

MIN_FRAMES = 8
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
    fps, wanted = record.fps or DEFAULT_FPS, min(place.frames, config.frames)
    frames = read_frames(folder, record, place, wanted, config.size)
    if len(frames) < wanted and place.start and place.elsewhere:
        place = Place(0, wanted)
        frames = read_frames(folder, record, place, wanted, config.size)
    if len(frames) < MIN_FRAMES:
        raise MediaError(record.path, f"fewer than {MIN_FRAMES} decodable frames ({len(frames)})")
    index = np.rint(np.linspace(0, len(frames) - 1, config.frames)).astype(int)
    settings = HevcSettings(config.gop, config.crf, config.preset)
    payload = encode_clip(frames[index], Fraction(fps).limit_denominator(1001), settings)
    resampled = len(frames) < config.frames
    return Clip(payload, place.start, fps, transcoded=True, resampled=resampled)


def _native(folder: Path, record: VideoRecord, place: Place, config: PrepareConfig) -> Clip | None:
    """The clip that begins at the key frame at or before ``place``, in the stream's own coding;
    None where that cannot be cut out: other pictures, reordered or too few frames."""
    if not _right_picture(record, config) or record.reordered is not False:
        return None
    if place.frames < config.frames:
        return None
    found = remux(record.media.source(folder), place.start, config.frames)
    return found and Clip(found.payload, found.start, record.fps or DEFAULT_FPS, transcoded=False)
