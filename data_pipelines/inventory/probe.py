"""What a video file is: one VideoRecord per file, the row of ``inventory.jsonl``.

The header is read, one frame is decoded (so the record tells a decodable file) and, for files up to
SCAN_BYTES, the packets are walked for key frames and reordering. Raises MediaError with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from ovtrain.schema.errors import MediaError

SCAN_BYTES = 64 << 20
"""Larger files are not walked packet by packet; their frame count is the header's."""


@dataclass(frozen=True)
class VideoRecord:
    """One video file.

    path           relative to the scanned folder.
    fps, duration  frames a second and seconds; 0 where unknown.
    frames         number of frames, 0 where unknown.
    gop            distance of the key frames where it is constant, else 0.
    reordered      B-frames or any other reordering; None where the packets were not walked.
    rotation       degrees counterclockwise that turn a decoded frame upright: 0, 90, 180 or 270.
    """

    path: str
    bytes: int
    codec: str
    pix_fmt: str
    width: int
    height: int
    fps: float
    frames: int
    duration: float
    gop: int
    reordered: bool | None
    rotation: int
    video_tracks: int
    audio_tracks: int


def probe(folder: Path, name: str) -> VideoRecord:
    """Record of ``folder/name``. Raises MediaError where it is not readable video."""
    path = folder / name
    try:
        with av.open(str(path)) as container:
            return _record(container, path, name)
    except FFmpegError as error:
        raise MediaError(name, f"unreadable ({error.strerror})") from error


def video_stream(container: InputContainer, name: str) -> VideoStream:
    """The track FFmpeg thinks best, single-threaded. Raises MediaError where there is none."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise MediaError(name, "no video track")
    # Parallelism is over files, not inside one.
    stream.codec_context.thread_count = 1
    return stream


def _record(container: InputContainer, path: Path, name: str) -> VideoRecord:
    stream = video_stream(container, name)
    size = path.stat().st_size
    keys, times = _walk(container, stream) if size <= SCAN_BYTES else ([], [])
    frame = _first_frame(path, name)
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate else 0.0
    frames = len(times) or stream.frames
    return VideoRecord(
        path=name,
        bytes=size,
        codec=stream.codec_context.name,
        pix_fmt=frame.format.name,
        width=frame.width,
        height=frame.height,
        fps=fps,
        frames=frames,
        duration=_duration(container, stream) or (frames / fps if fps else 0.0),
        gop=_gop(keys, len(times)),
        reordered=_reordered(times) if times else None,
        rotation=round(frame.rotation / 90) % 4 * 90,
        video_tracks=len(container.streams.video),
        audio_tracks=len(container.streams.audio),
    )


def _walk(container: InputContainer, stream: VideoStream) -> tuple[list[int], list[int | None]]:
    """Indices of key-frame packets, and the presentation time of every packet, in file order."""
    keys: list[int] = []
    times: list[int | None] = []
    for packet in container.demux(stream):
        if packet.size == 0:  # the flush packet at the end
            continue
        if packet.is_keyframe:
            keys.append(len(times))
        times.append(packet.pts)
    return keys, times


def _first_frame(path: Path, name: str) -> av.VideoFrame:
    # A fresh container: raw streams cannot be rewound after the packet walk.
    with av.open(str(path)) as container:
        for frame in container.decode(video_stream(container, name)):
            return frame
    raise MediaError(name, "no decodable frame")


def _duration(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def _gop(keys: Sequence[int], packets: int) -> int:
    """Key-frame distance; a single key frame means one GOP of the whole length."""
    if not keys or keys[0] != 0:
        return 0
    gaps = {b - a for a, b in pairwise(keys)}
    return packets if not gaps else gaps.pop() if len(gaps) == 1 else 0


def _reordered(times: Sequence[int | None]) -> bool | None:
    known = [time for time in times if time is not None]
    return known != sorted(known) if len(known) == len(times) else None
