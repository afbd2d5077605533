"""Any video, encoded to HEVC in memory first, then exact signals of that (`hevc-transcode`).

The signals are exact for the transcode, not for the source: they say what an encoder with the
paper's settings would spend, whatever codec the file came in. Luma alone is encoded (4:0:0, 8 bit),
at the file's own size. Nothing is kept but what the encoder looks ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import av.error
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext

from ovtrain.codec.bitstream import CodecSignals, Origin, Request
from ovtrain.codec.decoded import DecodedFrame, LumaReader, Media, Video, reason_of
from ovtrain.codec.hevc import CodedPicture, ExactSignals
from ovtrain.schema.errors import CodecError

ORIGIN: Origin = "hevc-transcode"
ENCODER = "libx265"


@dataclass(frozen=True)
class HevcSettings:
    """The paper's transcode (released flags, GOP as in the paper): GOP length in frames, constant
    rate factor, x265 preset; keyint = min-keyint = GOP, no scene cuts, no B-frames, one reference,
    parameter sets repeated at every key frame."""

    gop: int = 32
    crf: int = 23
    preset: str = "fast"

    def options(self) -> dict[str, str]:
        """libx265's options in FFmpeg."""
        # Without threads of its own: one of 12,000 encodes once spun for ever in x265's thread pool
        # (pools=1); and without it a clip of 112 pixels takes 44 ms instead of 53.
        x265 = (
            f"keyint={self.gop}:min-keyint={self.gop}:scenecut=0:bframes=0:ref=1:"
            "repeat-headers=1:pools=none:wpp=0:frame-threads=1:log-level=error"
        )
        return {"preset": self.preset, "crf": str(self.crf), "x265-params": x265}


def can_encode() -> bool:
    """Whether this FFmpeg has the encoder."""
    return ENCODER in av.codecs_available


class TranscodedSignals(ExactSignals):
    """SignalSource of any video that FFmpeg decodes; iterate it once.

    A window that starts later is decoded and encoded from the first frame on, so that its signals
    are those of the whole video. Raises MediaError, CodecError.
    """

    origin: Origin = ORIGIN

    def __init__(
        self,
        media: Media | Video,
        request: Request = Request(),
        settings: HevcSettings = HevcSettings(),
    ) -> None:
        self._reader = LumaReader(media)
        self._settings = settings
        super().__init__(self._reader.where, self._reader.height, self._reader.width, request)

    def __iter__(self) -> Iterator[CodecSignals]:
        return self.signals(b"", self._pictures())

    def _pictures(self) -> Iterator[CodedPicture]:
        """The encoder's packets; without B-frames they come in presentation order."""
        encoder = self._encoder()
        waiting: deque[DecodedFrame] = deque()
        try:
            for number, frame in enumerate(self._reader):
                waiting.append(replace(frame, luma=frame.luma[:0]))
                picture = av.VideoFrame.from_ndarray(frame.luma, format="gray")
                picture.pts, picture.time_base = number, encoder.time_base
                yield from _coded(encoder.encode(picture), waiting)
            yield from _coded(encoder.encode(None), waiting)
        except av.error.FFmpegError as error:
            raise CodecError(
                self.where,
                f"cannot be encoded at {self.width}x{self.height} ({reason_of(error)})",
                fix="take another origin",
            ) from error

    def _encoder(self) -> VideoCodecContext:
        encoder = av.CodecContext.create(ENCODER, "w")
        assert isinstance(encoder, VideoCodecContext)
        encoder.width, encoder.height, encoder.pix_fmt = self.width, self.height, "gray"
        encoder.time_base = Fraction(1, 30)
        encoder.thread_count = 1
        encoder.options = self._settings.options()
        return encoder

    def shown_at(self, number: int, time: float | None) -> float:
        assert time is not None
        return time

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> TranscodedSignals:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _coded(packets: list[Packet[Any]], waiting: deque[DecodedFrame]) -> Iterator[CodedPicture]:
    for packet in packets:
        frame = waiting.popleft()
        yield CodedPicture(bytes(packet), frame.pts, ok=frame.ok)
