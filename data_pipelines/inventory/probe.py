"""What a media file is: one VideoRecord or PictureRecord per file, a row of ``inventory.jsonl``.

Of a video the header is read, one frame is decoded (so the record tells a decodable file) and, for
files up to SCAN_BYTES, the packets are walked for key frames, reordering and time steps. Of a
picture the header is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from data_pipelines.inventory.media import MediaFile
from data_pipelines.inventory.scan import is_picture
from ovtrain.codec.pictures import picture_header
from ovtrain.schema.errors import MediaError

SCAN_BYTES = 64 << 20
"""Larger files are not walked packet by packet; their frame count is the header's."""


@dataclass(frozen=True)
class VideoRecord:
    """One video file.

    path           as ``MediaFile.name``; file, offset, size: where it lies.
    fps, duration  frames a second and seconds; 0 where unknown.
    frames         number of frames, 0 where unknown.
    gop            distance of the key frames where it is constant, else 0.
    reordered      B-frames or any other reordering; None where the packets were not walked.
    variable_rate  frames are not equally far apart in time; None where that is not known.
    rotation       degrees counterclockwise that turn a decoded frame upright: 0, 90, 180 or 270.
    content        hash of the bytes, or "".
    state          what tells that the file changed: bytes and modification time.
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
    variable_rate: bool | None
    rotation: int
    video_tracks: int
    audio_tracks: int
    file: str = ""
    offset: int = 0
    size: int = -1
    content: str = ""
    state: tuple[int, int] = (0, 0)

    @property
    def media(self) -> MediaFile:
        return MediaFile(self.path, self.file or self.path, self.offset, self.size)


@dataclass(frozen=True)
class PictureRecord:
    """One picture file: size upright; codec: the format's name; the rest as in VideoRecord."""

    path: str
    bytes: int
    codec: str
    width: int
    height: int
    file: str = ""
    offset: int = 0
    size: int = -1
    content: str = ""
    state: tuple[int, int] = (0, 0)

    media = VideoRecord.media


Record = VideoRecord | PictureRecord


def probe(folder: Path, media: MediaFile, *, content: bool = False) -> Record:
    """Record of a media file below ``folder``. Raises MediaError where it is not readable."""
    stat = (folder / media.file).stat()
    if not (stat.st_size if media.size < 0 else media.size):
        raise MediaError(media.name, "empty file")
    record = _probe_picture if is_picture(media.name) else _probe_video
    return replace(
        record(folder, media),
        file=media.file,
        offset=media.offset,
        size=media.size,
        content=media.content(folder) if content else "",
        state=(stat.st_size, stat.st_mtime_ns),
    )


def _probe_video(folder: Path, media: MediaFile) -> VideoRecord:
    try:
        with av.open(media.source(folder), "r") as container:
            return _record(container, folder, media)
    except FFmpegError as error:
        raise MediaError(media.name, f"unreadable ({error.strerror})") from error


def _probe_picture(folder: Path, media: MediaFile) -> PictureRecord:
    data = media.read(folder)
    header = picture_header(data, media.name)
    height, width = header.upright
    return PictureRecord(media.name, len(data), header.codec, width, height)


def video_stream(container: InputContainer, name: str) -> VideoStream:
    """The track FFmpeg thinks best, single-threaded. Raises MediaError where there is none."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise MediaError(name, "no video track")
    # Parallelism is over files, not inside one.
    stream.codec_context.thread_count = 1
    return stream


def _record(container: InputContainer, folder: Path, media: MediaFile) -> VideoRecord:
    stream = video_stream(container, media.name)
    size = (folder / media.file).stat().st_size if media.size < 0 else media.size
    keys, times = _walk(container, stream) if size <= SCAN_BYTES else ([], [])
    frame = _first_frame(folder, media)
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate else 0.0
    frames = len(times) or stream.frames
    return VideoRecord(
        path=media.name,
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
        variable_rate=_variable(times) if times else None,
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


def _first_frame(folder: Path, media: MediaFile) -> av.VideoFrame:
    # A fresh container: raw streams cannot be rewound after the packet walk.
    with av.open(media.source(folder), "r") as container:
        for frame in container.decode(video_stream(container, media.name)):
            return frame
    raise MediaError(media.name, "no decodable frame")


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


def _variable(times: Sequence[int | None]) -> bool | None:
    """Whether gaps between frames differ by more than the rounding of a container's clock."""
    known = sorted(time for time in times if time is not None)
    if len(known) < len(times) or len(known) < 3:
        return None
    gaps = [b - a for a, b in pairwise(known)]
    return max(gaps) - min(gaps) > max(2, median(gaps) // 10)
