"""Exact signals of HEVC bitstreams (`hevc-bitstream`): our decoder, which makes no pixels.

Motion vectors, picture order counts, coding modes, QP, bits and the luma residual are what the
bitstream says (ITU-T H.265, 7.3 to 8.6); nothing is estimated. The native part is ``native/hevc``;
FFmpeg only opens the container and hands out its packets.

Rotation metadata is not applied, and of several video tracks FFmpeg's best is read. What a
container's edit list hides gives no signals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import av.error
import numpy as np
import numpy.typing as npt
from av.packet import Packet

from ovtrain.codec.bitstream import CodecSignals, Origin
from ovtrain.codec.decoded import (
    FIX,
    Media,
    check_size,
    cut_short,
    media_name,
    open_video,
    shown_at,
)
from ovtrain.codec.kernels import native
from ovtrain.schema.errors import CodecError, MediaError

ORIGIN: Origin = "hevc-bitstream"
Allocate = Callable[[str, tuple[int, ...], Any], npt.NDArray[Any]]
"""(field, shape, dtype) -> the array that a frame's field is written to."""


@dataclass(frozen=True)
class Want:
    """What to make beside motion and reference_delta. A residual that is not wanted is empty and
    saves its inverse transforms; ``blocks``: mode, qp and cu_size; ``bits``: ctb_bits."""

    residual: bool = True
    blocks: bool = False
    bits: bool = False


def new_array(_field: str, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """The default ``allocate``: every frame has arrays of its own."""
    return np.empty(shape, dtype)


@dataclass(frozen=True)
class _Coded:
    """A packet: bytes, seconds, and whether the container hides what it holds."""

    size: int
    time: float | None
    hidden: bool


class HevcSignals:
    """SignalSource of an HEVC video; iterate it once.

    Raises MediaError where the file is no readable video and CodecError where it is not HEVC, uses
    a tool that the decoder leaves out, or changes its picture size.
    """

    origin: Origin = ORIGIN

    def __init__(self, media: Media, want: Want = Want(), allocate: Allocate = new_array) -> None:
        self.where = media_name(media)
        self._want, self._allocate = want, allocate
        self._container, self._stream = open_video(media, self.where)
        context = self._stream.codec_context
        if context.name != "hevc":
            self.close()
            raise CodecError(self.where, f"is {context.name}", allowed=f"hevc for {ORIGIN}")
        self.height, self.width = context.height, context.width
        self.lost_units = 0
        """Damaged NAL units that belong to no frame."""

    def __iter__(self) -> Iterator[CodecSignals]:
        try:
            yield from self._frames()
        except native().Unsupported as error:
            raise CodecError(
                self.where, f"needs {error}", allowed="tools of Main to RExt", fix="transcode it"
            ) from error

    def _frames(self) -> Iterator[CodecSignals]:
        configuration = self._stream.codec_context.extradata or b""
        decoder = native().HevcDecoder(configuration, self._want.residual, False)
        coded: dict[int, _Coded] = {}
        found = 0
        for frame in self._pictures(decoder, coded):
            # A packet should hold one picture; a second one has no time of its own.
            packet = coded.pop(frame.tag, _Coded(0, None, False))
            if packet.hidden:
                continue
            yield self._signals(frame, packet, found)
            found += 1
        self.lost_units = decoder.lost_units
        if not found:
            raise MediaError(self.where, f"no frame decodes ({decoder.last_fault})", fix=FIX)

    def _pictures(self, decoder: Any, coded: dict[int, _Coded]) -> Iterator[Any]:
        """Every picture in output order; notes each packet under its number."""
        for number, packet in enumerate(self._packets()):
            time = None if packet.pts is None else float(packet.pts * packet.time_base)
            coded[number] = _Coded(packet.size, time, packet.is_discard)
            decoder.push(bytes(packet), number)
            yield from iter(decoder.pop, None)
        decoder.flush()
        yield from iter(decoder.pop, None)

    def _packets(self) -> Iterator[Packet[Any]]:
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    yield packet
        except av.error.FFmpegError as error:
            raise cut_short(self.where, error) from error

    def _signals(self, frame: Any, packet: _Coded, number: int) -> CodecSignals:
        check_size(self.where, number, frame, self)
        cells = (-(-self.height // 4), -(-self.width // 4))
        motion = self._array("motion", (*cells, 2, 2), np.int16)
        delta = self._array("reference_delta", (*cells, 2), np.int16)
        frame.motion(motion)
        frame.reference_delta(delta)
        residual = np.empty((0, 0), np.int16)
        if self._want.residual:
            residual = self._array("residual", (self.height, self.width), np.int16)
            frame.residual(residual)
        return CodecSignals(
            type=frame.type,
            pts=shown_at(self._stream, number, packet.time),
            packet_bytes=packet.size,
            motion=motion,
            reference_delta=delta,
            residual=residual,
            origin=ORIGIN,
            parse_ok=frame.ok,
            poc=frame.poc,
            **self._blocks(frame, cells),
            **self._bits(frame),
        )

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        array = self._allocate(name, shape, dtype)
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise CodecError(
                self.where,
                f"the array given for {name} is {array.dtype} {array.shape}",
                allowed=f"contiguous {np.dtype(dtype)} {shape}",
            )
        return array

    def _blocks(self, frame: Any, cells: tuple[int, int]) -> dict[str, npt.NDArray[Any]]:
        if not self._want.blocks:
            return {}
        kinds = {"mode": np.uint8, "qp": np.int8, "cu_size": np.uint8}
        made = {name: self._array(name, cells, kind) for name, kind in kinds.items()}
        frame.blocks(*made.values())
        return made

    def _bits(self, frame: Any) -> dict[str, npt.NDArray[Any]]:
        if not self._want.bits:
            return {}
        made = self._array("ctb_bits", (frame.ctbs_down, frame.ctbs_across), np.uint32)
        frame.ctb_bits(made)
        return {"ctb_bits": made}

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> HevcSignals:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
