"""The ladder: which origin serves which codec, best first, and ``open_signals`` that climbs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ovtrain.codec.bitstream import (
    ORIGINS,
    Allocate,
    Origin,
    Request,
    SignalSource,
    Want,
    new_array,
)
from ovtrain.codec.decoded import Media, Video, media_name, opened
from ovtrain.codec.estimate import open_estimate
from ovtrain.codec.ffmpeg import open_h264
from ovtrain.codec.hevc import HevcSignals
from ovtrain.codec.kernels import has_native
from ovtrain.codec.transcode import TranscodedSignals, can_encode
from ovtrain.schema.errors import CodecError


@dataclass(frozen=True)
class Rung:
    """``codecs``: FFmpeg names of the codecs it serves; empty = all. ``works``: whether this
    installation has what it needs."""

    open: Callable[[Media | Video, Request], SignalSource]
    codecs: tuple[str, ...] = ()
    works: Callable[[], bool] = lambda: True

    def serves(self, codec: str) -> bool:
        return (not self.codecs or codec in self.codecs) and self.works()


LADDER: dict[Origin, Rung] = {
    "hevc-bitstream": Rung(HevcSignals, ("hevc",), has_native),
    "h264-export": Rung(open_h264, ("h264",)),
    "hevc-transcode": Rung(TranscodedSignals, works=lambda: has_native() and can_encode()),
    "pixel-estimate": Rung(open_estimate),
}
"""Best first; the order of ORIGINS. The first rung that serves a file's codec is taken."""


def open_signals(
    media: Media,
    *,
    origin: Origin | None = None,
    want: Want = Want(),
    allocate: Allocate = new_array,
    start: int = 0,
    stop: int | None = None,
) -> SignalSource:
    """Open a path, bytes or a seekable binary file on the best rung that serves its codec.

    origin      insists on one rung.
    want        the fields to make; what is not wanted costs nothing.
    allocate    gives the arrays that fields are written to: (field, shape, dtype) -> array.
    start, stop frames [start, stop) in presentation order, numbered as in the whole video. Exact
                signals of HEVC files are decoded from the random access picture before ``start``.

    A file is read as it is iterated: memory does not grow with its length. Raises MediaError where
    the file is no readable video and CodecError where the rung asked for cannot serve it, or the
    window is none.
    """
    request = Request(want, allocate, start, stop)
    if origin is not None:
        return _rung(origin, media_name(media)).open(media, request)
    video = opened(media)
    rung = next(rung for rung in LADDER.values() if rung.serves(video.codec))
    return rung.open(video, request)


def _rung(origin: Origin, where: str) -> Rung:
    if origin not in LADDER:
        raise CodecError(where, f"origin={origin}", allowed=", ".join(ORIGINS))
    if not LADDER[origin].works():
        raise CodecError(
            where,
            f"origin={origin} needs what this installation lacks",
            allowed=", ".join(name for name, rung in LADDER.items() if rung.works()),
            fix="install ovtrain with a C++17 compiler and PyAV with libx265",
        )
    return LADDER[origin]
