"""CodecSignals, the Protocol that makes them, what callers may ask for, and the origins.

    from ovtrain.codec import Want, open_signals
    with open_signals("clip.mp4", want=Want(bits=True), start=64, stop=128) as source:
        for signals in source:
            ...

One ``CodecSignals`` per frame in presentation order. The rung of the ladder that made them is
``signals.origin``; exact and estimated signals are never mixed silently.

H, W are the display size in luma samples; h4 = ceil(H / 4), w4 = ceil(W / 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ovtrain.schema.errors import CodecError

Origin = Literal["hevc-bitstream", "h264-export", "hevc-transcode", "pixel-estimate"]
FrameType = Literal["I", "P", "B"]

ORIGINS: tuple[Origin, ...] = ("hevc-bitstream", "h264-export", "hevc-transcode", "pixel-estimate")
"""Best first. A rung is taken when the ones above it cannot serve the file."""

UNKNOWN_DELTA = -32768
"""Reference delta of a list that is used but whose reference the origin does not tell."""


@dataclass(frozen=True)
class CodecSignals:
    """Side information of one frame.

    type            slice type of the frame: I, P or B.
    pts             presentation time in seconds.
    packet_bytes    size of the coded picture, 0 where the origin does not know it.
    motion          (h4, w4, 2, 2) int16, quarter-pel (x, y) per reference list; 0 where unused.
    reference_delta (h4, w4, 2) int16, current - reference in pictures; 0 = list unused,
                    UNKNOWN_DELTA = used, reference unknown.
    residual        (H, W) int16 signed luma prediction residual; 0 on intra frames of estimates;
                    (0, 0) where it was not asked for.
    origin          the rung that made it.
    parse_ok        False where the bitstream of this frame is known to be damaged.

    several_references: whether blocks of this frame may choose among several references of a list
                    that the origin does not tell apart (h264-export); None where that is not known
                    or, as with exact origins, each block's reference is.

    Of exact origins, and None elsewhere; the arrays also where they were not asked for:

    poc             picture order count, within its coded video sequence.
    mode            (h4, w4) uint8: 0 intra, 1 inter, 2 inter and skipped, 3 not decoded.
    qp              (h4, w4) int8 luma quantization parameter.
    cu_size         (h4, w4) uint8 side of the coding unit in luma samples.
    ctb_bits        (CTBs down, CTBs across) uint32 bits spent per coding tree block of the coded
                    picture; slice headers are not in it.
    """

    type: FrameType
    pts: float
    packet_bytes: int
    motion: npt.NDArray[np.int16]
    reference_delta: npt.NDArray[np.int16]
    residual: npt.NDArray[np.int16]
    origin: Origin
    parse_ok: bool = True
    several_references: bool | None = None
    poc: int | None = None
    mode: npt.NDArray[np.uint8] | None = None
    qp: npt.NDArray[np.int8] | None = None
    cu_size: npt.NDArray[np.uint8] | None = None
    ctb_bits: npt.NDArray[np.uint32] | None = None


class SignalSource(Protocol):
    """An open file: iterate it for signals, close it after."""

    @property
    def origin(self) -> Origin: ...

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def __iter__(self) -> Iterator[CodecSignals]: ...

    def close(self) -> None: ...

    def __enter__(self) -> SignalSource: ...

    def __exit__(self, *exc: object) -> None: ...


Array = npt.NDArray[Any]
Allocate = Callable[[str, tuple[int, ...], Any], Array]
"""(field, shape, dtype) -> the array that a frame's field is written to."""


def new_array(_field: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """The default ``allocate``: every frame has arrays of its own."""
    return np.empty(shape, dtype)


@dataclass(frozen=True)
class Want:
    """What to make beside motion and reference_delta. A residual that is not wanted is empty and
    saves its making; ``blocks``: mode, qp and cu_size; ``bits``: ctb_bits."""

    residual: bool = True
    blocks: bool = False
    bits: bool = False


@dataclass(frozen=True)
class Request:
    """What ``open_signals`` was asked: fields, where to write them, and frames [start, stop)."""

    want: Want = Want()
    allocate: Allocate = new_array
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            found = f"start={self.start}, stop={self.stop}"
            raise CodecError("open_signals", found, allowed="0 <= start < stop")

    def array(self, where: str, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """The caller's array for a field, checked. Raises CodecError."""
        array = self.allocate(name, shape, dtype)
        if self.allocate is new_array:
            return array
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise CodecError(
                where,
                f"the array given for {name} is {array.dtype} {array.shape}",
                allowed=f"contiguous {np.dtype(dtype)} {shape}",
            )
        return array
