"""Decoded luma with what the decoder tells beside it; the ground that every estimate stands on.

``LumaReader`` opens a path, bytes or a binary file with PyAV and yields one ``DecodedFrame`` per
picture in presentation order: luma (H, W) uint8 (deeper samples are shifted down to 8 bits), type,
pts in seconds, packet bytes and, where asked for, FFmpeg's exported motion vectors.

Rotation metadata is not applied: signals lie on the coded orientation, as PyAV's frames do. Of
several video tracks FFmpeg's best is read. A damaged packet is skipped and the next frame has
``ok=False``; MediaError where nothing decodes, CodecError where the picture size changes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from ovtrain.codec.bitstream import Array, CodecSignals, FrameType, Origin, Request, new_array
from ovtrain.codec.kernels import Luma
from ovtrain.schema.errors import CodecError, MediaError

Media = str | Path | bytes | BinaryIO
STRICT = {"err_detect": "crccheck+explode"}
"""What the decoder can tell of damage is an error; else it goes on with wrong pixels. Checksums are
compared where the bitstream holds some."""
FIX = "check the file with ffprobe, or leave it out"
PLANAR_LUMA = ("yuv", "gray", "nv12", "nv21")
"""Starts of the pixel formats whose first plane is the luma as the codec stores it."""
INTRA = (PictureType.I, PictureType.SI, PictureType.BI)


@dataclass(frozen=True)
class DecodedFrame:
    """luma (H, W) uint8; vectors: FFmpeg's MOTION_VECTORS records, or None; inspected: what the
    reader's ``inspect`` found in its packet."""

    luma: Luma
    type: FrameType
    pts: float
    packet_bytes: int = 0
    vectors: npt.NDArray[Any] | None = None
    ok: bool = True
    inspected: int | None = None


def media_name(media: Media) -> str:
    """What errors call a file."""
    if isinstance(media, bytes):
        return f"<{len(media)} bytes>"
    return str(media) if isinstance(media, str | Path) else str(getattr(media, "name", media))


class LumaReader:
    """An open video; iterate it once. Raises MediaError where no video stream can be opened.

    ``inspect`` sees each packet before it is decoded.
    """

    def __init__(self, media: Media | Video, *, vectors: bool = False) -> None:
        video = opened(media)
        self.where = video.where
        self.inspect: Callable[[bytes], int | None] | None = None
        self._container, self._stream = video.container, video.stream
        context = self._stream.codec_context
        context.thread_count = 1
        context.copy_opaque = True
        if vectors:
            context.options = {"flags2": "+export_mvs"}
        self.codec = context.name
        self.height, self.width = context.height, context.width
        self._started = False

    def __iter__(self) -> Iterator[DecodedFrame]:
        if self._started:
            raise read_already(self.where)
        self._started = True
        found = 0
        for frame, ok in self._decode():
            yield self._frame(frame, found, ok)
            found += 1
        if not found:
            raise MediaError(self.where, "no frame decodes", fix=FIX)

    def _decode(self) -> Iterator[tuple[VideoFrame, bool]]:
        ok = True
        try:
            for packet in self._container.demux(self._stream):
                found = self.inspect(bytes(packet)) if self.inspect and packet.size else None
                packet.opaque = (packet.size, found)
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    ok = False  # FFmpeg gave this packet up; what follows may still decode
                    continue
                for frame in frames:
                    if isinstance(frame, VideoFrame):
                        yield frame, ok and not frame.is_corrupt
                        ok = True
        except av.error.FFmpegError as error:
            raise cut_short(self.where, error) from error

    def _frame(self, frame: VideoFrame, number: int, ok: bool) -> DecodedFrame:
        check_size(self.where, number, frame, self)
        vectors = frame.side_data.get("MOTION_VECTORS")
        size, inspected = frame.opaque if isinstance(frame.opaque, tuple) else (0, None)
        return DecodedFrame(
            luma=luma(frame, self.where),
            type=_frame_type(frame),
            pts=shown_at(self._stream, number, frame.time),
            packet_bytes=size,
            vectors=None if vectors is None else vectors.to_ndarray(),
            ok=ok,
            inspected=inspected,
        )

    @property
    def extradata(self) -> bytes:
        """What the container says before the first packet: parameter sets, or nothing."""
        return self._stream.codec_context.extradata or b""

    def close(self) -> None:
        self._container.close()


def read_already(where: str) -> CodecError:
    """What to raise where a source is iterated again."""
    return CodecError(where, "was read already", fix="open it again")


class Sized(Protocol):
    """Anything with a picture size."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...


def check_size(where: str, number: int, frame: Sized, video: Sized) -> None:
    """A file has one picture size. Raises CodecError."""
    if (frame.height, frame.width) != (video.height, video.width):
        raise CodecError(
            where,
            f"frame {number} is {frame.width}x{frame.height} in a video of "
            f"{video.width}x{video.height}",
            allowed="one picture size per file",
            fix="transcode it, or cut it where the size changes",
        )


def shown_at(stream: VideoStream, number: int, time: float | None) -> float:
    """Seconds of a frame: its own time, or where there is none what the frame rate makes of its
    number."""
    if time is not None:
        return time
    return float(number / (stream.average_rate or stream.guessed_rate or Fraction(25)))


def cut_short(where: str, error: av.error.FFmpegError) -> MediaError:
    """What to raise where a container breaks off."""
    return MediaError(where, f"cannot be read to its end ({reason_of(error)})", fix=FIX)


@dataclass(frozen=True)
class Video:
    """An open container and its best video track."""

    media: Media
    container: InputContainer
    stream: VideoStream

    @property
    def where(self) -> str:
        return media_name(self.media)

    @property
    def codec(self) -> str:
        """FFmpeg's name of the track's codec."""
        return self.stream.codec_context.name


def opened(media: Media | Video) -> Video:
    """The video as it is, or opened; a binary file is read from its start. Raises MediaError."""
    if isinstance(media, Video):
        return media
    where = media_name(media)
    container = _open(media, where)
    try:
        return Video(media, container, _video_stream(container, where))
    except MediaError:
        container.close()
        raise


def reason_of(error: OSError | av.error.FFmpegError) -> str:
    """The message alone; str() of these puts an error number and the file name around it."""
    return str(error.strerror or error)


def _open(media: Media, where: str) -> InputContainer:
    file = io.BytesIO(media) if isinstance(media, bytes) else media
    try:
        if not isinstance(file, str | Path):
            file.seek(0)
        return av.open(file, "r", metadata_errors="ignore")
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(where, f"is not a readable video ({reason_of(error)})", fix=FIX) from error


def _video_stream(container: InputContainer, where: str) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        raise MediaError(where, "holds no video track", fix=FIX)
    if stream.codec_context is None:
        raise MediaError(where, "FFmpeg has no decoder for its video track", fix="transcode it")
    if not stream.codec_context.width or not stream.codec_context.height:
        raise MediaError(where, "its video track has no picture size", fix=FIX)
    return stream


def _frame_type(frame: VideoFrame) -> FrameType:
    if frame.pict_type in INTRA or frame.key_frame:
        return "I"
    return "B" if frame.pict_type == PictureType.B else "P"


def luma(frame: VideoFrame, where: str) -> Luma:
    """(H, W) uint8 luma of a frame of any pixel format. Raises CodecError."""
    if not frame.format.name.startswith(PLANAR_LUMA):
        try:
            frame = frame.reformat(format="gray")
        except (av.error.FFmpegError, ValueError) as error:
            found = f"pixel format {frame.format.name} has no luma ({error})"
            raise CodecError(where, found, fix="transcode it to yuv420p") from error
    depth, plane = frame.format.components[0].bits, frame.planes[0]
    lines = np.frombuffer(memoryview(plane), np.uint8)[: frame.height * plane.line_size]
    lines = lines.reshape(frame.height, plane.line_size)
    if depth > 8:
        order = ">u2" if frame.format.is_big_endian else "<u2"
        return (lines.view(order)[:, : frame.width] >> (depth - 8)).astype(np.uint8)
    return np.ascontiguousarray(lines[:, : frame.width])


class DecodedSignals:
    """SignalSource of the rungs that decode pixels: a reader and a rule from frames to signals.

    The frames before ``request.start`` are decoded and estimated, too: an estimate has no other
    random access than the decoder's.
    """

    def __init__(
        self,
        reader: LumaReader,
        origin: Origin,
        rule: Callable[[Iterable[DecodedFrame]], Iterator[CodecSignals]],
        request: Request,
    ) -> None:
        self._reader, self._rule, self._request = reader, rule, request
        self._origin: Origin = origin

    @property
    def origin(self) -> Origin:
        return self._origin

    @property
    def height(self) -> int:
        return self._reader.height

    @property
    def width(self) -> int:
        return self._reader.width

    def __iter__(self) -> Iterator[CodecSignals]:
        start, seen = self._request.start, 0
        for signals in islice(self._rule(self._reader), self._request.stop):
            seen += 1
            if seen > start:
                yield self._delivered(signals)
        if seen <= start:
            raise past_the_end(self._reader.where, start, seen)

    def _delivered(self, signals: CodecSignals) -> CodecSignals:
        """As asked for, in the caller's arrays."""
        made: dict[str, Array] = {}
        if not self._request.want.residual:
            signals = replace(signals, residual=np.empty((0, 0), np.int16))
        for name in ("motion", "reference_delta", "residual"):
            value: Array = getattr(signals, name)
            if value.size and self._request.allocate is not new_array:
                made[name] = self._request.array(self._reader.where, name, value.shape, value.dtype)
                made[name][...] = value
        return replace(signals, **made) if made else signals

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> DecodedSignals:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def past_the_end(where: str, start: int, frames: int) -> CodecError:
    """What to raise where a window starts behind the last frame."""
    return CodecError(
        where, f"start={start} in a video of {frames} frames", allowed="a frame of it"
    )
