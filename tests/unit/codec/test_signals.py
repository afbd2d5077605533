"""Signals of files and of decoded frames: motion that is known is found, bad files are named."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from ovtrain.codec import open_signals
from ovtrain.codec.bitstream import UNKNOWN_DELTA
from ovtrain.codec.decoded import DecodedFrame
from ovtrain.codec.estimate import estimate_signals
from ovtrain.codec.ffmpeg import exported, rasterise
from ovtrain.schema.errors import CodecError, MediaError
from tests.unit.codec.pictures import encode, moving_square, pan, texture

STREAMS = os.environ.get("OVTRAIN_STREAMS", "")
"""A folder of real bitstreams, one folder per codec in it."""
RECORD = ("source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")
X264 = {"preset": "fast", "crf": "18", "bf": "0", "g": "8", "refs": "1"}


@pytest.fixture(scope="module")
def h264():
    return encode(moving_square(12), "libx264", X264)


def estimated(luma, types="P"):
    types = (types * len(luma))[: len(luma)]
    return list(estimate_signals(luma, [t / 25 for t in range(len(luma))], list(types)))


def test_estimate_finds_the_motion_of_a_square_and_points_to_its_reference():
    clip = moving_square(4, step=(3, 2))
    signals = estimated(clip)[2]
    # the square covers x 22..62, y 28..68; these 4 x 4 blocks lie well inside
    assert (signals.motion[9:14, 8:12, 0] == (-12, -8)).all()
    assert not signals.motion[22:, 22:].any()
    assert (signals.reference_delta[..., 0] == 1).all()
    assert not signals.reference_delta[..., 1].any()
    assert not signals.residual[40:56, 36:50].any()


def test_residual_is_current_minus_shifted_reference():
    clip = pan(2, step=(2, 1))
    clip[1, 60:68, 60:68] += 9
    signals = estimated(clip)[1]
    assert (signals.residual[60:68, 60:68] == 9).mean() > 0.9
    assert not signals.residual[16:48, 16:48].any()


def test_first_and_intra_frames_of_an_estimate_carry_nothing():
    signals = estimated(moving_square(6), "PPPIPP")
    assert [s.type for s in signals] == ["I", "P", "P", "I", "P", "P"]
    for still in (signals[0], signals[3]):
        assert not still.motion.any()
        assert not still.residual.any()
        assert not still.reference_delta.any()


def test_large_pictures_are_searched_small_and_keep_their_shape():
    clip = np.stack([np.roll(texture(541, 643), (8 * t, 12 * t), (0, 1)) for t in range(2)])
    signals = estimated(clip)[1]
    assert signals.motion.shape == (136, 161, 2, 2)
    assert signals.residual.shape == (541, 643)
    centre = signals.motion[40:90, 40:110, 0].reshape(-1, 2)
    assert (np.median(centre, axis=0) == (-48, -32)).all()


def test_estimate_refuses_lengths_that_disagree():
    with pytest.raises(CodecError, match="3 pts"):
        estimate_signals(moving_square(2), [0.0, 1.0, 2.0], ["I", "P"])


def test_h264_exports_the_motion_of_a_square(h264):
    with open_signals(h264) as source:
        assert (source.origin, source.height, source.width) == ("h264-export", 112, 112)
        signals = list(source)
    assert [s.type for s in signals] == ["I"] + 7 * ["P"] + ["I"] + 3 * ["P"]
    assert all(s.packet_bytes > 0 and s.parse_ok for s in signals)
    assert np.allclose(np.diff([s.pts for s in signals]), 0.04)
    moved = signals[4]
    inside = moved.motion[11:16, 10:15, 0].reshape(-1, 2)
    assert (np.median(inside, axis=0) == (-12, -8)).all()
    assert not np.median(moved.motion[22:, 22:, 0].reshape(-1, 2), axis=0).any()
    assert set(np.unique(moved.reference_delta)) <= {0, UNKNOWN_DELTA}
    assert np.abs(moved.residual).mean() < 2
    assert not signals[0].residual.any()


def test_h264_b_frames_use_both_sides():
    data = encode(pan(12), "libx264", {**X264, "bf": "2", "b-pyramid": "none"})
    with open_signals(data) as source:
        signals = list(source)
    between = [s for s in signals if s.type == "B"]
    assert between
    assert any(s.reference_delta[..., 1].any() for s in between)
    for s in between:
        assert np.abs(s.residual).mean() < 4


def test_export_of_one_block_is_painted_where_its_centre_says():
    record = np.zeros(2, dtype=[(name, "<i4") for name in RECORD])
    record[0] = (-1, 16, 8, 8, 12, -6, 2, 2)
    record[1] = (1, 8, 8, 4, 4, 5, 0, 4)
    motion, used = rasterise(record, 6, 6)
    assert (motion[2:4, 0:4, 0] == (-12, 4)).all()
    assert used[..., 0].sum() == 8
    assert (motion[0:2, 0:2, 1] == (5, 0)).all()
    assert used[..., 1].sum() == 4


def test_a_block_of_two_lists_is_predicted_by_their_mean():
    record = np.zeros(2, dtype=[(name, "<i4") for name in RECORD])
    record[0] = (-1, 16, 16, 8, 8, 0, 0, 4)
    record[1] = (1, 8, 16, 4, 8, 0, 0, 4)
    past, now, future = (np.full((16, 16), level, np.uint8) for level in (10, 22, 30))
    frames = [
        DecodedFrame(past, "I", 0.0),
        DecodedFrame(now, "B", 1.0, vectors=record),
        DecodedFrame(future, "P", 2.0),
    ]
    residual = list(exported(frames))[1].residual
    assert (residual[:, :8] == 2).all()
    assert (residual[:, 8:] == 12).all()


def test_endless_b_frames_are_not_held_back_for_ever():
    frames = (DecodedFrame(np.full((16, 16), 9, np.uint8), "B", 0.0) for _ in range(40))
    source = exported(frames)
    next(source)
    assert sum(1 for _ in frames) >= 20
    assert sum(1 for _ in source) == 16


@pytest.mark.parametrize("pix_fmt", ["yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("size", [(112, 112), (49, 61)])
def test_other_formats_and_odd_sizes_give_frames(pix_fmt, size):
    if pix_fmt != "yuv444p" and size[0] % 2:
        size = (50, 62)
    clip = moving_square(4)[:, : size[0], : size[1]]
    with open_signals(encode(clip, "libx264", X264, pix_fmt=pix_fmt)) as source:
        signals = list(source)
    assert len(signals) == 4
    assert signals[1].residual.shape == size
    assert np.abs(signals[1].residual).mean() < 8


def test_paths_bytes_and_files_give_the_same_signals(h264, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(h264)
    with open(path, "rb") as handle:
        sums = []
        for media in (h264, path, str(path), io.BytesIO(h264), handle):
            with open_signals(media) as source:
                sums.append(sum(int(np.abs(s.motion.astype(np.int64)).sum()) for s in source))
    assert len(set(sums)) == 1


def test_a_source_is_read_once(h264):
    with open_signals(h264) as source:
        list(source)
        with pytest.raises(CodecError, match="read already"):
            list(source)


@pytest.mark.parametrize("data", [b"", b"no video", bytes(5000)])
def test_what_is_no_video_is_a_media_error(data):
    with pytest.raises(MediaError):
        open_signals(data)


def test_a_missing_file_is_named():
    with pytest.raises(MediaError, match=r"nowhere\.mp4.*No such file"):
        open_signals("nowhere.mp4")


def test_damaged_packets_are_flagged_or_refused(h264):
    rng = np.random.default_rng(0)
    raw = encode(moving_square(12), "libx264", X264, container="h264")
    flagged = 0
    for _ in range(8):
        data = np.frombuffer(raw, np.uint8).copy()
        data[rng.integers(1000, len(data), 30)] ^= 0x55
        try:
            with open_signals(data.tobytes()) as source:
                flagged += any(not s.parse_ok for s in source)
        except (MediaError, CodecError):
            flagged += 1
    assert flagged
    with pytest.raises(MediaError):
        open_signals(h264[: len(h264) // 2])


@pytest.mark.skipif(not STREAMS, reason="OVTRAIN_STREAMS names no folder of real streams")
def test_real_streams_give_frames_or_a_typed_error():
    refused = []
    for path in sorted(Path(STREAMS).glob("*/*")):
        try:
            with open_signals(path) as source:
                for number, signals in enumerate(source):
                    assert signals.residual.shape == (source.height, source.width)
                    if number == 3:
                        break
        except (MediaError, CodecError) as error:
            refused.append((path.name, str(error)))
    # three need screen content tools, one changes its cropping, another its size, in mid-stream
    refused = [entry for entry in refused if "screen content" not in entry[1]]
    assert len(refused) <= 2, refused
