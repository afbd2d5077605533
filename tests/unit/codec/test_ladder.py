"""Which origin serves which file, what a window of a video gives, and what callers may ask for."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from launch.commands import codec as command_line
from ovtrain.codec import ORIGINS, CodecSignals, Want, ladder, open_signals
from ovtrain.schema.errors import CodecError, MediaError
from tests.unit.codec.pictures import encode, moving_square, pan

pytest.importorskip("ovtrain.codec._native")
STREAMS = os.environ.get("OVTRAIN_STREAMS", "")
X264 = {"preset": "fast", "crf": "18", "bf": "0", "g": "8", "refs": "1"}
X265 = "log-level=error:pools=none:"
GOPS = {
    "open gop, b-pyramid": "open-gop=1:bframes=4:b-pyramid=1:b-adapt=0:keyint=8:min-keyint=8",
    "closed gop": "open-gop=0:bframes=2:keyint=6:min-keyint=6",
    "no b-frames": "bframes=0:keyint=5:min-keyint=5:scenecut=0",
    "radl": "bframes=3:open-gop=0:radl=2:keyint=8:min-keyint=8:b-adapt=0",
    "one gop": "keyint=250:bframes=3",
    "intra refresh": "intra-refresh=1:bframes=0:keyint=8",
}


def x265(clip: np.ndarray, extra: str, container: str = "mp4") -> bytes:
    options = {"preset": "medium", "x265-params": X265 + extra}
    return encode(clip, "libx265", options, container=container)


def read(media, **asked) -> list[CodecSignals]:
    with open_signals(media, **asked) as source:
        return list(source)


def same(a: CodecSignals, b: CodecSignals) -> bool:
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, np.ndarray) and not np.array_equal(value, other):
            return False
        if not isinstance(value, np.ndarray) and value != other:
            return False
    return True


@pytest.mark.parametrize(
    ("codec", "container", "origin"),
    [
        ("libx265", "mp4", "hevc-bitstream"),
        ("libx264", "mp4", "h264-export"),
        ("mpeg4", "mp4", "hevc-transcode"),
        ("libvpx-vp9", "webm", "hevc-transcode"),
        ("mjpeg", "avi", "hevc-transcode"),
    ],
)
def test_the_best_rung_that_serves_a_codec_is_taken(codec, container, origin):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    options = {"x265-params": X265 + "bframes=0"} if codec == "libx265" else {}
    data = encode(moving_square(6), codec, options, container=container, pix_fmt=pix_fmt)
    with open_signals(data) as source:
        assert source.origin == origin
        signals = list(source)
    assert len(signals) == 6
    assert {s.origin for s in signals} == {origin}
    assert signals[3].motion[9:14, 8:12, 0].any()
    estimate = read(data, origin="pixel-estimate")
    assert {s.origin for s in estimate} == {"pixel-estimate"}
    assert np.allclose([s.pts for s in estimate], [s.pts for s in signals])


def test_the_ladder_is_the_list_of_origins():
    assert tuple(ladder.LADDER) == ORIGINS
    assert command_line.ORIGINS == ORIGINS  # launch does not import the codec room


def test_without_the_extension_or_the_encoder_the_lowest_rung_serves(monkeypatch):
    hevc = x265(pan(4), "bframes=0")
    mpeg4 = encode(pan(4), "mpeg4", {})
    monkeypatch.setattr(ladder, "can_encode", lambda: False)
    assert read(mpeg4)[1].origin == "pixel-estimate"
    monkeypatch.setattr("ovtrain.codec.kernels._native", None)
    assert read(hevc)[1].origin == "pixel-estimate"
    with pytest.raises(CodecError, match="origin=hevc-bitstream needs what this installation"):
        open_signals(hevc, origin="hevc-bitstream")


def test_a_rung_that_cannot_serve_is_a_typed_error():
    mpeg4 = encode(pan(2), "mpeg4", {})
    with pytest.raises(CodecError, match="is mpeg4; allowed: hevc for"):
        open_signals(mpeg4, origin="hevc-bitstream")
    with pytest.raises(CodecError, match="is mpeg4; allowed: h264 for"):
        open_signals(mpeg4, origin="h264-export")
    with pytest.raises(CodecError, match=r"origin=exact; allowed: hevc-bitstream, h264-export"):
        open_signals(mpeg4, origin="exact")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", [(112, 112), (49, 61)])
def test_a_transcode_is_exact_for_what_was_encoded(size):
    clip = pan(40, step=(2, 1))[:, : size[0], : size[1]]
    data = encode(clip, "libx264", X264, pix_fmt="yuv444p")
    signals = read(data, origin="hevc-transcode", want=Want(blocks=True, bits=True))
    assert [s.type for s in signals] == ["I"] + 31 * ["P"] + ["I"] + 7 * ["P"]
    assert all(s.parse_ok and s.packet_bytes > 0 and s.qp is not None for s in signals)
    assert signals[0].residual.shape == size
    used = signals[5].reference_delta[..., 0] != 0
    assert (signals[5].reference_delta[..., 0][used] == 1).all()
    assert np.median(signals[5].motion[..., 0, :][used], axis=0).tolist() == [8, 4]


@pytest.mark.parametrize("gop", GOPS)
@pytest.mark.parametrize("container", ["mp4", "hevc", "mpegts"])
def test_a_window_is_a_slice_of_the_whole(gop: str, container: str):
    data = x265(moving_square(26, step=(2, 1)), GOPS[gop], container)
    whole = read(data)
    assert len(whole) == 26
    for start, stop in [(0, 3), (1, 2), (7, 9), (8, 17), (13, None), (25, 40)]:
        window = read(data, start=start, stop=stop)
        assert len(window) == len(whole[start:stop])
        assert all(map(same, window, whole[start:stop])), (start, stop)


@pytest.mark.parametrize("origin", ["h264-export", "hevc-transcode", "pixel-estimate"])
def test_windows_of_the_other_origins(origin):
    data = encode(moving_square(12), "libx264", {**X264, "bf": "2"})
    whole = read(data, origin=origin)
    window = read(data, origin=origin, start=5, stop=9)
    assert len(window) == 4
    assert all(map(same, window, whole[5:9]))


def test_a_window_decodes_from_the_random_access_point_before_it():
    clip = moving_square(24, step=(2, 1))
    data = bytearray(x265(clip, "bframes=0:keyint=6:min-keyint=6:scenecut=0:info=0", "hevc"))
    data[1500:1510] = 10 * b"\xa5"  # within the first pictures
    assert not all(s.parse_ok for s in read(bytes(data)))
    assert all(s.parse_ok for s in read(bytes(data), start=12))


@pytest.mark.parametrize("origin", ["hevc-bitstream", "hevc-transcode", "pixel-estimate"])
def test_windows_that_are_none(origin):
    data = x265(pan(6), "bframes=0")
    with pytest.raises(CodecError, match="start=6 in a video of 6 frames"):
        read(data, origin=origin, start=6)
    for start, stop in [(-1, None), (3, 3), (4, 2)]:
        with pytest.raises(CodecError, match="allowed: 0 <= start < stop"):
            open_signals(data, origin=origin, start=start, stop=stop)


@pytest.mark.parametrize("origin", ORIGINS)
def test_what_is_asked_for_goes_into_the_callers_arrays(origin):
    codec, options = ("libx264", X264) if origin == "h264-export" else ("libx265", {})
    data = encode(
        moving_square(5), codec, options | {"x265-params": X265} if options == {} else options
    )
    motion = iter(np.empty((5, 28, 28, 2, 2), np.int16))
    residual = iter(np.empty((5, 112, 112), np.int16))
    stacks = {"motion": motion, "residual": residual}

    def allocate(field, shape, dtype):
        return next(stacks[field]) if field in stacks else np.empty(shape, dtype)

    filled = read(data, origin=origin, allocate=allocate)
    assert all(map(same, filled, read(data, origin=origin)))
    assert filled[0].motion.base is not None
    assert all(s.motion.base is filled[0].motion.base for s in filled)
    bare = read(data, origin=origin, want=Want(residual=False))
    assert all(s.residual.shape == (0, 0) for s in bare)
    assert all(np.array_equal(a.motion, b.motion) for a, b in zip(bare, filled, strict=True))


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_source_is_read_once(origin):
    codec, options = ("libx264", X264) if origin == "h264-export" else ("mpeg4", {})
    if origin == "hevc-bitstream":
        codec, options = "libx265", {"x265-params": X265}
    with open_signals(encode(pan(3), codec, options), origin=origin) as source:
        list(source)
        with pytest.raises(CodecError, match="read already"):
            list(source)


def test_files_are_read_from_their_start():
    data = x265(pan(12), "bframes=0:keyint=4:min-keyint=4")
    file = io.BytesIO(data)
    file.seek(100)
    assert all(map(same, read(file, start=9), read(data)[9:]))


@pytest.mark.parametrize(("references", "several"), [(1, False), (3, True)])
@pytest.mark.parametrize("container", ["mp4", "h264"])
def test_several_references_of_an_export_are_said(references, several, container):
    options = {**X264, "refs": str(references), "x264-params": "sliced-threads=0"}
    found = read(encode(moving_square(12), "libx264", options, container=container))
    predicted = [s.several_references for s in found if s.type != "I"]
    assert any(predicted) is several
    assert None not in predicted
    assert not any(s.several_references for s in found if s.type == "I")


@pytest.mark.skipif(not STREAMS, reason="OVTRAIN_STREAMS names no folder of real streams")
def test_windows_of_real_streams():
    wrong = []
    for path in sorted(Path(STREAMS).glob("hevc/*")):
        if "fuzz" in path.name:
            continue
        try:
            whole = read(path, want=Want(residual=False))
            start = 2 * len(whole) // 3
            window = read(path, want=Want(residual=False), start=start)
        except (CodecError, MediaError):
            continue
        if len(window) != len(whole) - start or not all(map(same, window, whole[start:])):
            wrong.append(path.name)
    assert wrong == []
