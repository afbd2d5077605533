"""CodecSignals, the Protocol that makes them, and the ladder of origins.

    from ovtrain.codec import open_signals
    with open_signals("clip.mp4") as source:
        for signals in source:
            ...

One ``CodecSignals`` per frame in presentation order. The rung of the ladder that made them is
``signals.origin``; exact and estimated signals are never mixed silently.

H, W are the display size in luma samples; h4 = ceil(H / 4), w4 = ceil(W / 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

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
    residual        (H, W) int16 signed luma prediction residual; 0 on intra frames of estimates.
    block_bits      (h4, w4) float32 bits spent per 4 x 4 block, or None where unknown.
    origin          the rung that made it.
    parse_ok        False where the bitstream of this frame is known to be damaged.
    """

    type: FrameType
    pts: float
    packet_bytes: int
    motion: npt.NDArray[np.int16]
    reference_delta: npt.NDArray[np.int16]
    residual: npt.NDArray[np.int16]
    block_bits: npt.NDArray[np.float32] | None
    origin: Origin
    parse_ok: bool = True


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
