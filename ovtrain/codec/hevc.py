"""Exact signals of HEVC bitstreams (`hevc-bitstream`): our decoder, which makes no pixels.

Motion vectors, picture order counts, coding modes, QP, bits and the luma residual are what the
bitstream says (ITU-T H.265, 7.3 to 8.6); nothing is estimated. The native part is ``native/hevc``;
FFmpeg only opens the container and hands out its packets.

Rotation metadata is not applied, and of several video tracks FFmpeg's best is read. What a
container's edit list hides gives no signals.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import av.error
import numpy as np
from av.packet import Packet

from ovtrain.codec.bitstream import Array, CodecSignals, Origin, Request
from ovtrain.codec.decoded import (
    FIX,
    Media,
    Video,
    check_size,
    cut_short,
    opened,
    past_the_end,
    read_already,
    shown_at,
)
from ovtrain.codec.kernels import native
from ovtrain.schema.errors import CodecError, MediaError

ORIGIN: Origin = "hevc-bitstream"
REORDERED = 32
"""Pictures behind one in decoding order that can still precede it in presentation order: 16 at most
(sps_max_num_reorder_pics), and the leading pictures of a random access point."""


class CodedPicture(NamedTuple):
    """An access unit: its bytes, seconds, whether the container hides it, whether what it was made
    from is whole, and the parameter sets that the container changes to with it."""

    payload: bytes
    time: float | None = None
    hidden: bool = False
    ok: bool = True
    configuration: bytes | None = None


class _Coded(NamedTuple):
    """What a frame keeps of its access unit."""

    size: int = 0
    time: float | None = None
    hidden: bool = False
    ok: bool = True


@dataclass(frozen=True)
class _Entry:
    """Where to start decoding: a packet's number, and the place in presentation order of every
    picture around it by packet number."""

    packet: int
    places: dict[int, int]


class ExactSignals:
    """Access units -> signals, in presentation order; what both exact origins share.

    ``where`` names the video in errors, ``height`` and ``width`` are its display size.
    """

    origin: Origin

    def __init__(self, where: str, height: int, width: int, request: Request) -> None:
        self.where, self.height, self.width = where, height, width
        self._request = request
        self.lost_units = 0
        """Damaged NAL units so far that belong to no frame."""

    def signals(
        self, configuration: bytes, pictures: Iterable[CodedPicture], entry: _Entry | None = None
    ) -> Iterator[CodecSignals]:
        """Signals of the request's window. Raises CodecError, MediaError."""
        first, stop = self._request.start, self._request.stop
        number: int | None = None
        last_fault = ""
        with self.supported():
            decoder = native().HevcDecoder(configuration, self._request.want.residual, False)
            for frame, coded in _decoded(decoder, pictures, entry):
                self.lost_units, last_fault = decoder.lost_units, decoder.last_fault
                if number is None:
                    number = entry.places.get(frame.tag) if entry else 0
                if coded.hidden or number is None:
                    continue
                if number >= first:
                    yield self._signals(frame, coded, number)
                number += 1
                if number == stop:
                    break
            self.lost_units, last_fault = decoder.lost_units, decoder.last_fault
        if number is None:
            raise MediaError(self.where, f"no frame decodes ({last_fault})", fix=FIX)
        if number <= first:
            raise past_the_end(self.where, first, number)

    @contextmanager
    def supported(self) -> Generator[None, None, None]:
        """Raise CodecError for what the decoder leaves out."""
        try:
            yield
        except native().Unsupported as error:
            raise CodecError(
                self.where, f"needs {error}", allowed="tools of Main to RExt", fix="transcode it"
            ) from error

    def _signals(self, frame: Any, coded: _Coded, number: int) -> CodecSignals:
        check_size(self.where, number, frame, self)
        cells = (-(-self.height // 4), -(-self.width // 4))
        motion = self._array("motion", (*cells, 2, 2), np.int16)
        delta = self._array("reference_delta", (*cells, 2), np.int16)
        frame.motion(motion)
        frame.reference_delta(delta)
        residual = np.empty((0, 0), np.int16)
        if self._request.want.residual:
            residual = self._array("residual", (self.height, self.width), np.int16)
            frame.residual(residual)
        made: dict[str, Any] = {**self._blocks(frame, cells), **self._bits(frame)}
        return CodecSignals(
            type=frame.type,
            pts=self.shown_at(number, coded.time),
            packet_bytes=coded.size,
            motion=motion,
            reference_delta=delta,
            residual=residual,
            origin=self.origin,
            parse_ok=frame.ok and coded.ok,
            poc=frame.poc,
            **made,
        )

    def shown_at(self, number: int, time: float | None) -> float:
        """Seconds of a frame."""
        raise NotImplementedError

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        return self._request.array(self.where, name, shape, dtype)

    def _blocks(self, frame: Any, cells: tuple[int, int]) -> dict[str, Array]:
        if not self._request.want.blocks:
            return {}
        kinds = {"mode": np.uint8, "qp": np.int8, "cu_size": np.uint8}
        made = {name: self._array(name, cells, kind) for name, kind in kinds.items()}
        frame.blocks(*made.values())
        return made

    def _bits(self, frame: Any) -> dict[str, Array]:
        if not self._request.want.bits:
            return {}
        made = self._array("ctb_bits", (frame.ctbs_down, frame.ctbs_across), np.uint32)
        frame.ctb_bits(made)
        return {"ctb_bits": made}


def _decoded(
    decoder: Any, pictures: Iterable[CodedPicture], entry: _Entry | None
) -> Iterator[tuple[Any, _Coded]]:
    """Every decoded frame in output order, with what is known of its access unit."""
    waiting: dict[int, _Coded] = {}

    def ready() -> Iterator[tuple[Any, _Coded]]:
        for frame in iter(decoder.pop, None):
            # A packet should hold one picture; a second one has neither time nor bytes of its own.
            yield frame, waiting.pop(frame.tag, _Coded())

    for number, (payload, time, hidden, ok, configuration) in enumerate(pictures):
        if configuration is not None:
            decoder.configure(configuration)
        if entry and number < entry.packet:
            decoder.skim(payload)
            continue
        waiting[number] = _Coded(len(payload), time, hidden, ok)
        decoder.push(payload, number)
        yield from ready()
    decoder.flush()
    yield from ready()


class HevcSignals(ExactSignals):
    """SignalSource of an HEVC video; iterate it once.

    A window that starts later is decoded from the last random access picture before it: up to
    there headers alone are read, so that order counts and numbers are those of the whole video.
    Raises MediaError where the file is no readable video and CodecError where it is not HEVC, uses
    a tool that the decoder leaves out, changes its picture size, or ends before the window starts.
    """

    origin: Origin = ORIGIN

    def __init__(self, media: Media | Video, request: Request = Request()) -> None:
        self._video = opened(media)
        where, context = self._video.where, self._video.stream.codec_context
        if self._video.codec != "hevc":
            self.close()
            raise CodecError(where, f"is {context.name}", allowed=f"hevc for {ORIGIN}")
        super().__init__(where, context.height, context.width, request)
        self._started = False

    def __iter__(self) -> Iterator[CodecSignals]:
        if self._started:
            raise read_already(self.where)
        self._started = True
        configuration = self._video.stream.codec_context.extradata or b""
        entry = self._find_entry(configuration) if self._request.start else None
        yield from self.signals(configuration, self._pictures(), entry)

    def _pictures(self) -> Iterator[CodedPicture]:
        base = self._video.stream.time_base or Fraction(1)
        try:
            for packet in self._video.container.demux(self._video.stream):
                if packet.size:
                    time = packet.pts
                    if time is not None:
                        time = time * base.numerator / base.denominator
                    yield CodedPicture(
                        bytes(packet), time, packet.is_discard, True, _new_configuration(packet)
                    )
        except av.error.FFmpegError as error:
            raise cut_short(self.where, error) from error

    def _find_entry(self, configuration: bytes) -> _Entry:
        """The last random access point at or before the window's first frame, found by reading
        headers; the container stands at its start again."""
        start = self._request.start
        with self.supported():
            decoder = native().HevcDecoder(configuration, False, False)
        shown: list[tuple[int, int, int]] = []  # (sequence, picture order count, packet)
        random_access: list[int] = []
        forgotten = 0  # pictures before those, all of them earlier
        for number, picture in enumerate(self._pictures()):
            with self.supported():
                if picture.configuration is not None:
                    decoder.configure(picture.configuration)
                found = decoder.skim(picture.payload)
            if found is None:
                continue
            sequence, poc, is_random_access, is_shown = found
            if is_shown and not picture.hidden:
                if is_random_access:
                    forgotten += _forget(shown, random_access, start - forgotten)
                    random_access.append(number)
                shown.append((sequence, poc, number))
            if forgotten + len(shown) > start + 2 * REORDERED:
                break
        if forgotten + len(shown) <= start:
            raise past_the_end(self.where, start, forgotten + len(shown))
        places = {packet: place for place, (*_, packet) in enumerate(sorted(shown), forgotten)}
        self.close()
        self._video = opened(self._video.media)
        before = [packet for packet in random_access if places[packet] <= start]
        return _Entry(max(before, default=0), places)

    def shown_at(self, number: int, time: float | None) -> float:
        return shown_at(self._video.stream, number, time)

    def close(self) -> None:
        self._video.container.close()

    def __enter__(self) -> HevcSignals:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _new_configuration(packet: Packet[Any]) -> bytes | None:
    """Parameter sets that come with a packet: an MP4 may hold several sample descriptions."""
    if not packet.has_sidedata("new_extradata"):
        return None
    return bytes(packet.get_sidedata("new_extradata"))


def _forget(shown: list[tuple[int, int, int]], random_access: list[int], wanted: int) -> int:
    """Drop the pictures before the last random access point, where it is itself no later than the
    place that is wanted; how many they were. All of them precede it in presentation order, too."""
    if not random_access:
        return 0
    at = next(i for i, (*_, packet) in enumerate(shown) if packet == random_access[-1])
    if sum(other < shown[at] for other in shown) > wanted:
        return 0
    del shown[:at]
    del random_access[:-1]
    return at
