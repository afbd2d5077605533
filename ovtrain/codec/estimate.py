"""The lowest rung: signals estimated from decoded luma, for any codec (`pixel-estimate`).

Motion is full-search block matching against the previous frame in presentation order; the residual
is the luma difference that the motion leaves. Both follow the conventions of an exact decoder: the
vector points from the current block to its reference, in quarter pixels of list 0, and
residual = current - reference(shifted). Frames the decoder calls I, and the first one, carry
neither.

The search runs on pictures of about ``SEARCH_SIDE`` lines: larger ones are averaged down by a whole
factor, so that reach and block size follow the picture, and the result is spread back over the
pixels. Against exact signals the order of patches agrees to .5-.9 (Spearman), less with B-frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ovtrain.codec.bitstream import CodecSignals, FrameType, Origin, Request
from ovtrain.codec.decoded import DecodedFrame, DecodedSignals, LumaReader, Media, Video
from ovtrain.codec.kernels import Luma, block_motion, compensate, spread
from ovtrain.schema.errors import CodecError

ORIGIN: Origin = "pixel-estimate"
BLOCK, RADIUS, SEARCH_SIDE = 8, 7, 256
"""Side of a search block and reach of the search, in lines of the search picture."""
STILL = 1.5
"""Mean grey levels of change below which a block is taken to be still. An encoder, too, only sends
a vector that pays for its bits; without this, quantisation flicker on plain ground moves at
random."""


def open_estimate(media: Media | Video, request: Request = Request()) -> DecodedSignals:
    """Estimated signals of any video FFmpeg decodes. Raises MediaError, CodecError."""
    return DecodedSignals(LumaReader(media), ORIGIN, estimates, request)


def estimate_signals(
    luma: npt.NDArray[np.uint8], pts: Sequence[float], types: Sequence[FrameType]
) -> Iterator[CodecSignals]:
    """Signals of frames that are decoded already: luma (T, H, W), pts in seconds (T,), types (T,).

    Raises CodecError where the three disagree in length.
    """
    if luma.ndim != 3 or not len(luma) == len(pts) == len(types):
        found = f"luma {luma.shape}, {len(pts)} pts, {len(types)} types"
        raise CodecError("estimate_signals", found, allowed="(T, H, W), T and T")
    return estimates(map(DecodedFrame, luma, types, pts))


def estimates(frames: Iterable[DecodedFrame]) -> Iterator[CodecSignals]:
    """One estimate per decoded frame, each against the frame before it."""
    previous: Luma | None = None
    for frame in frames:
        yield _estimate(frame, previous)
        previous = frame.luma


def _estimate(frame: DecodedFrame, previous: Luma | None) -> CodecSignals:
    height, width = frame.luma.shape
    blocks = (-(-height // 4), -(-width // 4))
    motion = np.zeros((*blocks, 2, 2), np.int16)
    delta = np.zeros((*blocks, 2), np.int16)
    if previous is None or frame.type == "I":
        kind, residual = "I", np.zeros((height, width), np.int16)
    else:
        kind = frame.type
        motion[:, :, 0], residual = _search(frame.luma, previous)
        delta[:, :, 0] = 1
    return CodecSignals(
        type=kind,
        pts=frame.pts,
        packet_bytes=frame.packet_bytes,
        motion=motion,
        reference_delta=delta,
        residual=residual,
        origin=ORIGIN,
        parse_ok=frame.ok,
    )


def _search(current: Luma, previous: Luma) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Two (H, W) pictures -> (h4, w4, 2) quarter-pel motion and (H, W) residual."""
    height, width = current.shape
    factor = max(1, min(height, width) // SEARCH_SIDE)
    small, past = _averaged(current, factor), _averaged(previous, factor)
    down, across = -(-small.shape[0] // 4), -(-small.shape[1] // 4)
    found = block_motion(small, past, BLOCK, RADIUS)
    found[_change(small, past) < STILL] = 0
    motion = spread(4 * found, BLOCK // 4, down, across)
    residual = np.subtract(small, compensate(past, motion), dtype=np.int16)
    if factor == 1:
        return motion, residual
    blocks = (-(-height // 4), -(-width // 4))
    return spread(motion * factor, factor, *blocks), spread(residual, factor, height, width)


def _change(current: Luma, previous: Luma) -> npt.NDArray[np.float64]:
    """(ceil(H/BLOCK), ceil(W/BLOCK)) mean absolute difference of each search block."""
    rows, columns = (np.arange(0, side, BLOCK) for side in current.shape)
    difference = np.abs(np.subtract(current, previous, dtype=np.int16))
    sums = np.add.reduceat(np.add.reduceat(difference, rows, 0, dtype=np.int32), columns, 1)
    counts = np.outer(*(np.diff([*range(0, n, BLOCK), n]) for n in current.shape))
    return sums / counts


def _averaged(picture: Luma, factor: int) -> Luma:
    """Means of factor x factor pixels; edge pixels repeat up to a whole number of them."""
    if factor == 1:
        return picture
    height, width = picture.shape
    padded = np.pad(picture, ((0, -height % factor), (0, -width % factor)), mode="edge")
    rows = np.add.reduceat(padded, np.arange(0, len(padded), factor), axis=0, dtype=np.uint32)
    sums = rows.reshape(len(rows), -1, factor).sum(axis=2)
    return (sums // factor**2).astype(np.uint8)
