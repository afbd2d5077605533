"""The ladder: which origin serves which codec, best first, and ``open_signals`` that climbs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ovtrain.codec.bitstream import ORIGINS, Origin, SignalSource
from ovtrain.codec.decoded import LumaReader, Media, media_name
from ovtrain.codec.estimate import open_estimate
from ovtrain.codec.ffmpeg import open_h264
from ovtrain.schema.errors import CodecError


@dataclass(frozen=True)
class Rung:
    """``codecs``: FFmpeg names of the codecs it serves; empty = all."""

    open: Callable[[Media], SignalSource]
    codecs: tuple[str, ...] = ()

    def serves(self, codec: str) -> bool:
        return not self.codecs or codec in self.codecs


LADDER: dict[Origin, Rung] = {
    "h264-export": Rung(open_h264, ("h264",)),
    "pixel-estimate": Rung(open_estimate),
}
"""Best first. A rung that joins later takes its place here, and no caller changes."""


def open_signals(media: Media, *, origin: Origin | None = None) -> SignalSource:
    """Open a path, bytes or a seekable binary file on the best rung that serves its codec.

    ``origin`` insists on one rung. Raises MediaError where the file is no readable video and
    CodecError where the rung asked for cannot serve it.
    """
    if origin is not None:
        return _rung(origin, media_name(media)).open(media)
    codec = _codec(media)
    return next(rung for rung in LADDER.values() if rung.serves(codec)).open(media)


def _codec(media: Media) -> str:
    reader = LumaReader(media)
    reader.close()
    if not isinstance(media, bytes) and hasattr(media, "seek"):
        media.seek(0)  # pyright: ignore[reportAttributeAccessIssue]
    return reader.codec


def _rung(origin: Origin, where: str) -> Rung:
    if origin in LADDER:
        return LADDER[origin]
    if origin not in ORIGINS:
        raise CodecError(where, f"origin={origin}", allowed=", ".join(LADDER))
    raise CodecError(
        where,
        f"origin={origin} has no decoder in this version",
        allowed=", ".join(LADDER),
        fix="leave origin out to take the best rung there is",
    )
