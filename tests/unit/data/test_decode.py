"""Decoders give the frames that were asked for, or a MediaError that names the sample."""

import io

import numpy as np
import pytest
from PIL import Image

from ovtrain.data.decode.base import PillowImages, decode_image, fit
from ovtrain.data.decode.pyav import decode_clip
from ovtrain.schema.errors import MediaError
from tests.helpers.shards import hevc, jpeg


@pytest.fixture(scope="module")
def clip() -> bytes:
    """Ten grey frames, each 20 levels brighter than the one before."""
    return hevc(
        np.repeat(np.arange(20, 220, 20, dtype=np.uint8), 32 * 32 * 3).reshape(10, 32, 32, 3)
    )


def test_all_frames_in_order(clip: bytes):
    frames = decode_clip(clip, "x")
    assert (frames.shape, frames.dtype) == ((10, 32, 32, 3), np.uint8)
    # x265's quantiser keeps flat grey within a few levels.
    assert np.abs(frames.mean((1, 2, 3)) - np.arange(20, 220, 20)).max() < 5


def test_wanted_frames_may_repeat_and_be_unordered(clip: bytes):
    every = decode_clip(clip, "x")
    assert np.array_equal(decode_clip(clip, "x", [7, 2, 7]), every[[7, 2, 7]])


@pytest.mark.parametrize("data", [b"", b"not a video", bytes(5000)])
def test_other_bytes_are_refused_by_name(data: bytes):
    with pytest.raises(MediaError, match=r"^a\.tar/k: does not decode"):
        decode_clip(data, "a.tar/k")


def test_a_clip_that_is_too_short_is_refused(clip: bytes):
    with pytest.raises(MediaError, match="has no frame 12"):
        decode_clip(clip, "x", [0, 12])


def test_a_clip_that_is_cut_is_refused(clip: bytes):
    with pytest.raises(MediaError):
        decode_clip(clip[: len(clip) // 2], "x")


def test_pictures_are_fitted_by_their_short_side():
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 255  # what a centre crop of 40 x 40 keeps
    assert (fit(picture, 20)[:, 1:-1] == 255).all()  # the resampler reads across the crop's edge
    assert fit(picture, 20).shape == (20, 20, 3)
    assert np.array_equal(fit(picture[:, :40], 40), picture[:, :40])


def test_grey_pictures_become_rgb_and_bad_ones_an_error():
    good = jpeg(np.full((8, 8), 99, np.uint8))
    assert decode_image(good, "x").shape == (8, 8, 3)
    found = PillowImages(8)([good, b"", good[: len(good) // 2]], ["a", "b", "c"])
    assert isinstance(found[0], np.ndarray)
    assert [str(x)[:2] for x in found[1:]] == ["b:", "c:"]


def test_a_picture_too_large_to_hold_is_refused_before_it_is_decoded():
    out = io.BytesIO()
    Image.new("1", (9100, 9100)).save(out, "PNG")
    with pytest.raises(
        MediaError, match=r"a: too large a picture \(9100 x 9100\); allowed: 80,000"
    ):
        decode_image(out.getvalue(), "a")
