"""Exact HEVC signals through containers: order, times, cropping, choices, and what is refused."""

from __future__ import annotations

import io
import os
from pathlib import Path

import av
import numpy as np
import pytest

from ovtrain.codec import Want, open_signals
from ovtrain.codec.bitstream import Request
from ovtrain.codec.hevc import CodedPicture, HevcSignals
from ovtrain.schema.errors import CodecError, MediaError
from tests.unit.codec.pictures import encode, moving_square, pan

_native = pytest.importorskip("ovtrain.codec._native")
STREAMS = os.environ.get("OVTRAIN_STREAMS", "")
UNSUPPORTED = ("palette", "-act")
X265 = "log-level=error:pools=none:keyint=8:bframes=3:b-adapt=0:no-open-gop=1:"


def x265(clip: np.ndarray, extra: str = "", container: str = "mp4", pix_fmt="yuv420p") -> bytes:
    options = {"preset": "medium", "x265-params": X265 + extra}
    return encode(clip, "libx265", options, container=container, pix_fmt=pix_fmt)


def ffmpeg(data: bytes) -> list[tuple[float | None, int, int]]:
    with av.open(io.BytesIO(data)) as container:
        return [(f.time, f.height, f.width) for f in container.decode(video=0)]


@pytest.mark.parametrize("container", ["mp4", "matroska", "mov", "mpegts", "hevc"])
def test_frames_come_in_presentation_order_with_ffmpegs_times(container: str):
    data = x265(moving_square(20, step=(2, 1)), container=container)
    with HevcSignals(data) as source:
        found = list(source)
    assert len(found) == 20
    assert all(signals.parse_ok for signals in found)
    if container != "hevc":
        assert [s.pts for s in found] == [time for time, *_ in ffmpeg(data)]
    assert [s.type for s in found[:8]] == ["I", "B", "B", "B", "P", "B", "B", "P"]
    assert {s.poc for s in found[:8]} == set(range(8))
    assert all(s.packet_bytes > 0 for s in found)


def test_motion_of_a_pan_points_against_it():
    with HevcSignals(x265(pan(8, step=(2, 1)), "bframes=0:crf=8")) as source:
        last = list(source)[-1]
    used = last.reference_delta[..., 0] != 0
    assert used.mean() > 0.8
    per_picture = last.motion[..., 0, :][used] / last.reference_delta[..., 0][used][:, None] / 4
    assert np.median(per_picture, axis=0).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("size", [(90, 122), (98, 114), (66, 70)])
def test_maps_are_cropped_to_the_display_window(size: tuple[int, int]):
    height, width = size
    clip = pan(6, side=160)[:, :height, :width]
    with open_signals(x265(clip), want=Want(blocks=True, bits=True)) as source:
        assert (source.height, source.width) == size
        for signals in source:
            cells = (-(-height // 4), -(-width // 4))
            assert signals.residual.shape == size
            assert signals.motion.shape == (*cells, 2, 2)
            assert signals.mode is not None
            assert signals.mode.shape == cells
            assert signals.mode.max() < 3
            assert signals.cu_size is not None
            assert set(np.unique(signals.cu_size)) <= {8, 16, 32, 64}
            assert signals.qp is not None
            assert 0 < signals.qp.mean() < 51
            assert signals.ctb_bits is not None
            share = signals.ctb_bits.sum() / (8 * signals.packet_bytes)
            assert 0.05 < share < 1


def test_what_is_not_wanted_is_not_made():
    data = x265(moving_square(6))
    with open_signals(data, want=Want(residual=False)) as source:
        motion_only = list(source)
    with HevcSignals(data) as source:
        whole = list(source)
    for a, b in zip(motion_only, whole, strict=True):
        assert a.residual.shape == (0, 0)
        assert a.mode is a.qp is a.cu_size is a.ctb_bits is None
        assert np.array_equal(a.motion, b.motion)
        assert np.array_equal(a.reference_delta, b.reference_delta)
    assert any(signals.residual.any() for signals in whole)


def test_outputs_go_into_the_callers_arrays():
    data = x265(moving_square(6))
    stack = np.empty((6, 112, 112), np.int16)
    rows = iter(stack)

    def allocate(field, shape, dtype):
        return next(rows) if field == "residual" else np.empty(shape, dtype)

    with open_signals(data, allocate=allocate) as source:
        found = list(source)
    assert all(np.shares_memory(s.residual, stack) for s in found)
    with HevcSignals(data) as source:
        assert np.array_equal(stack, [s.residual for s in source])
    with (
        open_signals(data, allocate=lambda *_: np.empty(3, np.int16)) as source,
        pytest.raises(CodecError, match=r"array given for motion is int16 \(3,\); allowed: contig"),
    ):
        next(iter(source))


def test_a_damaged_packet_marks_its_frame_and_the_rest_goes_on():
    data = bytearray(
        x265(moving_square(24, step=(2, 1)), "keyint=6:bframes=0:info=0", container="hevc")
    )
    data[len(data) // 2 : len(data) // 2 + 8] = b"\xa5" * 8
    with HevcSignals(bytes(data)) as source:
        found = list(source)
    ok = [signals.parse_ok for signals in found]
    assert len(ok) >= 22
    assert 0 < ok.count(False) < 8


@pytest.mark.parametrize("lost", [3, 5, 9])
def test_what_comes_of_a_lost_picture_is_never_called_whole(lost: int):
    """Vectors are predicted from other pictures' vectors: a loss spreads, and is said as far."""
    clip = pan(24, step=(2, 1)) // 2 + moving_square(24, step=(2, 1)) // 2
    data = x265(clip, "bframes=0:keyint=12:ref=3:temporal-mvp=1:info=0:crf=18", container="hevc")
    units = data.split(b"\0\0\1")
    slices = [i for i, unit in enumerate(units) if unit and unit[0] >> 1 < 32]
    cut = b"\0\0\1".join(unit for i, unit in enumerate(units) if i != slices[lost])
    with HevcSignals(data) as source:
        whole = {(n >= 12, s.poc): s for n, s in enumerate(source)}
    with HevcSignals(cut) as source:
        found = list(source)
    assert len(found) == 23
    assert not found[lost].parse_ok
    wrong = 0
    for number, signals in enumerate(found):
        true = whole[number >= 11, signals.poc]
        same = np.array_equal(signals.motion, true.motion)
        wrong += not same
        assert same or not signals.parse_ok, number
    assert wrong
    assert all(signals.parse_ok for signals in found[11:])


def test_parameter_sets_that_the_container_changes_to_are_read(tmp_path: Path):
    """FFmpeg hands them out beside a packet, as of a second sample description of an MP4."""
    parts = [x265(pan(6), "bframes=0:ctu=16:qp=30"), x265(moving_square(6), "bframes=2:ctu=64")]
    pictures, wanted = [], []
    for number, data in enumerate(parts):
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            configuration = stream.codec_context.extradata
            packets = [bytes(p) for p in container.demux(stream) if p.size]
        pictures += [CodedPicture(p, 0.0) for p in packets]
        if number:
            at = len(pictures) - len(packets)
            pictures[at] = pictures[at]._replace(configuration=configuration)
        else:
            first = configuration
        with HevcSignals(data) as source:
            wanted += [s.motion for s in source]
    with HevcSignals(parts[0]) as source:
        found = list(source.signals(first, pictures))
    assert all(s.parse_ok for s in found)
    assert all(np.array_equal(s.motion, w) for s, w in zip(found, wanted, strict=True))


def test_slices_that_are_refused_leave_nothing_behind():
    data = x265(moving_square(4), "bframes=0:slices=1:info=0", container="hevc")
    units = data.split(b"\0\0\1")
    last = b"\0\0\1" + next(u for u in reversed(units) if u and u[0] >> 1 < 32)
    first_bit_off = last[:5] + bytes([last[5] & 0x7F]) + last[6:]
    decoder = _native.HevcDecoder(b"", True, False)
    decoder.push(data + 5000 * first_bit_off, 0)
    decoder.flush()
    assert sum(1 for _ in iter(decoder.pop, None)) == 4


def test_a_packet_of_very_many_pictures_is_cut_off():
    """What one packet can make a decoder hold is bounded."""
    data = x265(moving_square(26, step=(2, 1)), "bframes=0:keyint=1", container="hevc")
    decoder = _native.HevcDecoder(b"", True, False)
    decoder.push(data, 0)
    decoder.flush()
    assert 16 <= sum(1 for _ in iter(decoder.pop, None)) < 20
    assert decoder.lost_units
    assert decoder.last_fault == "too many pictures in a packet"


def test_other_codecs_and_tools_are_refused_by_name():
    clip = encode(moving_square(4), "libx264", {"preset": "ultrafast"})
    with pytest.raises(CodecError, match="is h264; allowed: hevc for hevc-bitstream"):
        HevcSignals(clip)
    with pytest.raises(MediaError):
        HevcSignals(b"nothing")


@pytest.mark.skipif(not STREAMS, reason="OVTRAIN_STREAMS names no folder of real streams")
def test_every_conforming_real_stream_parses_and_others_are_refused():
    wrong = {}
    for path in sorted(Path(STREAMS).glob("*/*")):
        refusable = any(word in path.name for word in UNSUPPORTED)
        try:
            with HevcSignals(path) as source:
                ok = [signals.parse_ok for signals in source]
            frames = ffmpeg(path.read_bytes())
        except CodecError as error:
            if "allowed: hevc" not in str(error) and not refusable:
                wrong[path.name] = str(error)
            if refusable:  # wherever one starts
                with HevcSignals(path, Request(start=1)) as source, pytest.raises(CodecError):
                    list(source)
            continue
        except MediaError:
            continue
        if "fuzz" not in path.name and (not all(ok) or len(ok) != len(frames)):
            wrong[path.name] = f"{ok.count(False)} of {len(ok)} damaged, FFmpeg has {len(frames)}"
    assert wrong == {}
