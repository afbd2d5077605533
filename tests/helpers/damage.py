"""Samples damaged in seeded ways, from a few good ones, and what a loader may say of each.

A ``Damage`` changes the payloads of a sample (the tar and its index then are those of a sound shard
that holds it). ``named``: the categories that a loader may give as the reason; ``good``: whether it
may be used all the same: a decoder cannot tell every flipped bit. What is done to tars and indexes
after they were written stands in ``tests/unit/data/test_damage.py``.
"""

from __future__ import annotations

import io
import pickle
import struct
import wave
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import av
import numpy as np
from PIL import Image

from ovtrain.schema.sample import CLIP, ENERGY, IMAGE
from tests.helpers.harmful import HARMS, MARK
from tests.helpers.shards import hevc, jpeg, npy

FRAMES, SIZE = 8, 28
Payloads = dict[str, bytes]
UNDECODED = "does not decode"
SHORT = "too few frames"
OTHER_SIZE = "other size"
ENERGY_DAMAGED = "energy is damaged"
NO_PICTURE = "not a readable picture"
LARGE = "too large a picture"
THIN = "too long a picture"
DIED, LATE, SWOLLEN = "worker process died", "timed out", "out of memory"


@dataclass(frozen=True)
class Damage:
    change: Callable[[Payloads, np.random.Generator], Payloads]
    named: frozenset[str]
    good: bool = False


def moving(frames: int = FRAMES, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """(T, H, W, 3) uint8: a picture of blocks that moves."""
    rng = np.random.default_rng(seed)
    wide = rng.integers(0, 255, (size // 2, size // 2, 3), dtype=np.uint8)
    wide = wide.repeat(4, 0).repeat(4, 1)
    steps = [t % size for t in range(frames)]
    return np.stack([wide[t : t + size, t : t + size] for t in steps])


@cache
def clip(
    frames: int = FRAMES,
    size: int = SIZE,
    codec: str = "libx265",
    pixels: str = "yuv420p",
    container: str = "mp4",
    gop: int = 32,
    variable: bool = False,
    fragmented: bool = False,
) -> bytes:
    out = io.BytesIO()
    x265 = f"log-level=error:pools=1:bframes=0:keyint={gop}:min-keyint={gop}"
    options = {"movflags": "frag_keyframe+empty_moov"} if fragmented else {}
    with av.open(out, "w", format=container, options=options) as opened:
        stream = opened.add_stream(codec, rate=16)
        stream.height = stream.width = size
        stream.pix_fmt, stream.gop_size = pixels, gop
        if codec == "libx265":
            stream.options = {"preset": "ultrafast", "x265-params": x265}
        if variable:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(moving(frames, size)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels)
            if variable:
                frame.pts, frame.time_base = 10 * number * number, Fraction(1, 1000)
            opened.mux(stream.encode(frame))
        opened.mux(stream.encode())
    return out.getvalue()


@cache
def sound() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-999, 999, 4000).astype("<i2").tobytes())
    return out.getvalue()


def box(data: bytes, name: bytes) -> tuple[int, int]:
    """Start and end of the payload of an mp4's first box of that name."""
    at = data.index(name)
    return at + 4, at - 4 + struct.unpack(">I", data[at - 4 : at])[0]


def flipped(data: bytes, rng: np.random.Generator, start: int = 0, end: int | None = None) -> bytes:
    """1 to 20 bits of ``data[start:end]`` turned."""
    out = bytearray(data)
    for at in rng.integers(start, end or len(data), rng.integers(1, 21)).tolist():
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out)


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(1, len(data) - 1))]


def overwritten(data: bytes, rng: np.random.Generator) -> bytes:
    """A run of bytes replaced by zeros or noise."""
    at, run = int(rng.integers(len(data))), int(rng.integers(16, 512))
    noise = rng.bytes(run) if rng.uniform() < 0.5 else bytes(run)
    return (data[:at] + noise + data[at + run :])[: len(data)]


def removed(data: bytes, rng: np.random.Generator) -> bytes:
    """A run of bytes cut out."""
    at, run = int(rng.integers(len(data))), int(rng.integers(1, 64))
    return data[:at] + data[at + run :]


def rotated(data: bytes) -> bytes:
    """The display matrix of the track turned by 90 degrees."""
    start, _ = box(data, b"tkhd")
    at = start + 40  # version 0: the matrix follows 40 bytes of times, ids and volumes
    assert data[at : at + 4] == b"\0\1\0\0", "not a unit matrix"
    matrix = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 2**30)
    return data[:at] + matrix + data[at + 36 :]


def claims(data: bytes, width: int, height: int) -> bytes:
    """The container's picture sizes replaced."""
    at = box(data, b"hvc1" if b"hvc1" in data else b"hev1")[0] + 24
    return data[:at] + struct.pack(">HH", width, height) + data[at + 4 :]


def picture(side: int = SIZE, seed: int = 0) -> Image.Image:
    return Image.fromarray(moving(1, side, seed)[0])


@cache
def saved(form: str, mode: str = "RGB", side: int = SIZE, frames: int = 1) -> bytes:
    out, shown = io.BytesIO(), picture(side)
    shown = (
        Image.fromarray(np.arange(side * side, dtype=np.uint16).reshape(side, side) * 80)
        if (mode == "I;16")
        else shown.convert(mode)
    )
    more = {"save_all": True, "append_images": [shown] * (frames - 1)} if frames > 1 else {}
    shown.save(out, form, **more)
    return out.getvalue()


def png(width: int, height: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A grey PNG of whatever size with whatever lines."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    more = b"".join(chunk(*pair) for pair in extra)
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + more + body + chunk(b"IEND", b"")


def of(member: str, change: Callable[[bytes, np.random.Generator], bytes]):
    def changed(payloads: Payloads, rng: np.random.Generator) -> Payloads:
        return {**payloads, member: change(payloads[member], rng)}

    return changed


def put(member: str, make: Callable[[], bytes]):
    return of(member, lambda _, __: make())


def _clips() -> Mapping[str, Damage]:
    either = frozenset({UNDECODED, SHORT, OTHER_SIZE})
    lost = frozenset({UNDECODED, SHORT})
    no, short, other = frozenset({UNDECODED}), frozenset({SHORT}), frozenset({OTHER_SIZE})
    ok = frozenset[str]()
    return {
        "truncated": Damage(of(CLIP, truncated), lost, good=True),
        "truncated-fragments": Damage(
            of(CLIP, lambda _, rng: truncated(clip(gop=2, fragmented=True), rng)), lost, good=True
        ),
        "empty": Damage(put(CLIP, bytes), no),
        "garbage": Damage(of(CLIP, lambda d, rng: rng.bytes(len(d))), no),
        "zeros": Damage(of(CLIP, lambda d, _: bytes(len(d))), no),
        "text": Damage(put(CLIP, lambda: b"<html>404 not found</html>\n" * 40), no),
        "playlist": Damage(put(CLIP, lambda: b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"), no),
        "flips-in-pictures": Damage(
            of(CLIP, lambda d, rng: flipped(d, rng, *box(d, b"mdat"))), either, good=True
        ),
        "flips-in-headers": Damage(
            of(CLIP, lambda d, rng: flipped(d, rng, *box(d, b"moov"))),
            either | {SWOLLEN},
            good=True,
        ),
        "overwritten": Damage(of(CLIP, overwritten), either, good=True),
        "bytes-removed": Damage(of(CLIP, removed), either, good=True),
        "matroska": Damage(put(CLIP, lambda: clip(container="matroska")), ok, good=True),
        "avi-of-mpeg4": Damage(
            put(CLIP, lambda: clip(container="avi", codec="mpeg4")), ok, good=True
        ),
        "h264": Damage(put(CLIP, lambda: clip(codec="libx264")), ok, good=True),
        "raw-hevc": Damage(put(CLIP, lambda: clip(container="hevc")), ok, good=True),
        "all-intra": Damage(put(CLIP, lambda: clip(gop=1)), ok, good=True),
        "ten-bit": Damage(put(CLIP, lambda: clip(pixels="yuv420p10le")), ok, good=True),
        "full-chroma": Damage(put(CLIP, lambda: clip(pixels="yuv444p")), ok, good=True),
        "grey": Damage(put(CLIP, lambda: clip(pixels="gray")), ok, good=True),
        "variable-rate": Damage(put(CLIP, lambda: clip(variable=True)), ok, good=True),
        "rotated": Damage(of(CLIP, lambda _, __: rotated(clip())), ok, good=True),
        "more-frames": Damage(put(CLIP, lambda: clip(frames=FRAMES + 3)), ok, good=True),
        "one-frame": Damage(put(CLIP, lambda: clip(frames=1)), short),
        "fewer-frames": Damage(put(CLIP, lambda: clip(frames=FRAMES - 1)), short),
        "smaller": Damage(put(CLIP, lambda: clip(size=24)), other),
        "larger": Damage(put(CLIP, lambda: clip(size=112)), other),
        "large": Damage(
            put(CLIP, lambda: clip(frames=2, size=2048)), frozenset({OTHER_SIZE, SHORT})
        ),
        "claims-to-be-huge": Damage(
            of(CLIP, lambda _, __: claims(clip(), 65535, 65535)), either, good=True
        ),
        "sound": Damage(put(CLIP, sound), no),
        "picture": Damage(put(CLIP, lambda: jpeg(moving(1)[0])), frozenset({UNDECODED, SHORT})),
        "animation": Damage(put(CLIP, lambda: saved("GIF", frames=3)), lost),
    }


def _energies() -> Mapping[str, Damage]:
    named = frozenset({ENERGY_DAMAGED})

    def header(shape: str) -> bytes:
        good = npy(np.zeros((FRAMES, 2, 2), np.uint16))
        return good.replace(b"(8, 2, 2)", shape.encode()[:9].ljust(9))

    def array(change: Callable[[np.ndarray], np.ndarray]):
        energies = np.zeros((FRAMES, 2, 2), np.uint16)
        return put(ENERGY, lambda: npy(change(energies)))

    return {
        "energy-truncated": Damage(of(ENERGY, truncated), named),
        "energy-empty": Damage(put(ENERGY, bytes), named),
        "energy-garbage": Damage(of(ENERGY, lambda d, rng: rng.bytes(len(d))), named),
        "energy-flips": Damage(of(ENERGY, flipped), named, good=True),
        "energy-of-floats": Damage(array(lambda e: e.astype(np.float32)), named),
        "energy-big-endian": Damage(array(lambda e: e.astype(">u2")), named),
        "energy-of-fewer-frames": Damage(array(lambda e: e[:4]), named),
        "energy-of-two-axes": Damage(array(lambda e: e.reshape(FRAMES, 4)), named),
        "energy-in-columns": Damage(array(np.asfortranarray), frozenset(), good=True),
        "energy-claims-to-be-huge": Damage(put(ENERGY, lambda: header("(9**9, 9)")), named),
        "energy-too-large": Damage(put(ENERGY, lambda: header("(9999999,)"[:9])), named),
        "energy-pickled": Damage(put(ENERGY, lambda: pickle.dumps([1, 2, 3])), named),
        "energy-of-objects": Damage(put(ENERGY, lambda: _objects()), named),
        "energy-zipped": Damage(put(ENERGY, lambda: _zipped()), named),
    }


def _objects() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return out.getvalue()


def _zipped() -> bytes:
    out = io.BytesIO()
    np.savez(out, np.zeros((FRAMES, 2, 2), np.uint16))
    return out.getvalue()


def _pictures() -> Mapping[str, Damage]:
    no, ok = frozenset({NO_PICTURE}), frozenset[str]()
    either = frozenset({NO_PICTURE, LARGE, THIN})
    bomb = bytes(2**26)
    return {
        "jpeg-truncated": Damage(of(IMAGE, truncated), no),
        "jpeg-flips": Damage(of(IMAGE, flipped), either, good=True),
        "jpeg-overwritten": Damage(of(IMAGE, overwritten), either, good=True),
        "jpeg-bytes-removed": Damage(of(IMAGE, removed), either, good=True),
        "no-bytes": Damage(put(IMAGE, bytes), no),
        "noise": Damage(of(IMAGE, lambda d, rng: rng.bytes(len(d))), no),
        "page": Damage(put(IMAGE, lambda: b"<html>404 not found</html>\n" * 40), no),
        "video": Damage(put(IMAGE, clip), no),
        "png": Damage(put(IMAGE, lambda: saved("PNG")), ok, good=True),
        "png-flips": Damage(
            of(IMAGE, lambda _, rng: flipped(saved("PNG"), rng)), either, good=True
        ),
        "png-truncated": Damage(
            of(IMAGE, lambda _, rng: truncated(saved("PNG"), rng)), either, good=True
        ),
        "png-bomb": Damage(put(IMAGE, lambda: png(30000, 30000, bytes(99))), frozenset({LARGE})),
        "png-of-2**31": Damage(put(IMAGE, lambda: png(2**31 - 1, 2**31 - 1, b"")), either),
        "png-with-a-text-bomb": Damage(
            put(
                IMAGE,
                lambda: png(28, 28, bytes(29 * 28), (b"zTXt", b"a\0\0" + zlib.compress(bomb))),
            ),
            no,
            good=True,
        ),
        "png-without-lines": Damage(put(IMAGE, lambda: png(28, 28, b"")), no),
        "png-of-no-height": Damage(put(IMAGE, lambda: png(28, 0, b"")), no),
        "line": Damage(put(IMAGE, lambda: png(60000, 1, bytes(60001))), frozenset({THIN})),
        "cmyk": Damage(put(IMAGE, lambda: saved("JPEG", "CMYK")), ok, good=True),
        "grey-jpeg": Damage(put(IMAGE, lambda: saved("JPEG", "L")), ok, good=True),
        "deep": Damage(put(IMAGE, lambda: saved("PNG", "I;16")), ok, good=True),
        "one-bit": Damage(put(IMAGE, lambda: saved("PNG", "1")), ok, good=True),
        "palette": Damage(put(IMAGE, lambda: saved("PNG", "P")), ok, good=True),
        "transparent": Damage(put(IMAGE, lambda: saved("PNG", "RGBA")), ok, good=True),
        "animated-gif": Damage(put(IMAGE, lambda: saved("GIF", frames=3)), no, good=True),
        "animated-png": Damage(put(IMAGE, lambda: saved("PNG", frames=3)), ok, good=True),
        "webp": Damage(put(IMAGE, lambda: saved("WEBP")), ok, good=True),
        "webp-flips": Damage(
            of(IMAGE, lambda _, rng: flipped(saved("WEBP"), rng)), either, good=True
        ),
        "tiff": Damage(put(IMAGE, lambda: saved("TIFF")), no, good=True),
        "bitmap": Damage(put(IMAGE, lambda: saved("BMP")), no, good=True),
        "tiny": Damage(put(IMAGE, lambda: saved("PNG", side=4)), ok, good=True),
        "larger-picture": Damage(put(IMAGE, lambda: saved("JPEG", side=1000)), ok, good=True),
    }


def _harms(member: str) -> Mapping[str, Damage]:
    named = {
        **dict.fromkeys(HARMS, DIED),
        **dict.fromkeys(("hang", "spin", "stop"), LATE),
        **dict.fromkeys(("grow", "grow-outside"), SWOLLEN),
    }
    return {
        f"{name}-in-{member}": Damage(
            put(member, lambda name=name: MARK + name.encode()), frozenset({category})
        )
        for name, category in named.items()
    }


DAMAGES: Mapping[str, Mapping[str, Damage]] = {
    "video": {**_clips(), **_energies()},
    "image": _pictures(),
}
HARMFUL: Mapping[str, Mapping[str, Damage]] = {"video": _harms(CLIP), "image": _harms(IMAGE)}


def payloads(kind: str, seed: int) -> Payloads:
    """A good sample's."""
    rng = np.random.default_rng(seed)
    if kind == "image":
        return {IMAGE: jpeg(moving(1, seed=seed % 4)[0]), "json": b"{}"}
    energy = rng.integers(0, 65535, (FRAMES, SIZE // 14, SIZE // 14)).astype(np.uint16)
    return {CLIP: _good_clip(seed % 4), ENERGY: npy(energy), "json": b"{}"}


@cache
def _good_clip(seed: int) -> bytes:
    return hevc(moving(seed=seed))
