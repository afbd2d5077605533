"""Decoders give the frames that were asked for, or a MediaError that names the sample."""

import io

import numpy as np
import pytest
from PIL import Image

from ovtrain.data.decode.base import decode_image, decode_part, fit, picture_size
from ovtrain.data.decode.pyav import decode_clip
from ovtrain.data.pixels import Box, resample_reference
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
    for bad in (b"", b"not a picture", good[: len(good) // 2], good[:-2]):
        for decode in (decode_image, shown_whole):
            with pytest.raises(MediaError, match=r"^a: not a readable picture"):
                decode(bad, "a")


def shown_whole(data: bytes, where: str, shape: tuple[int, int] = (8, 8)) -> np.ndarray:
    return decode_part(data, where, lambda *size: Box(0, 0, *size), shape)


def encoded(picture: np.ndarray, mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(out, **{"format": "JPEG", **options})
    return out.getvalue()


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"quality": 90}),
        ("RGB", {"quality": 60, "subsampling": 0, "progressive": True}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"keep_rgb": True}),
        ("RGB", {"format": "PNG"}),
        ("P", {"format": "PNG"}),
    ],
)
def test_pictures_are_those_that_pillow_decodes(mode, options):
    """Bit for bit: where libjpeg-turbo decodes, it is the one in Pillow, without shortcuts."""
    data = encoded(texture(37, 50), mode, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image(data, "x"), expected)
    assert np.array_equal(shown_whole(data, "x", (37, 50)), expected)
    assert picture_size(data, "x") == (37, 50)


@pytest.mark.parametrize("side", [40, 70, 130, 290])
def test_a_picture_that_is_decoded_smaller_is_the_same_picture(side):
    """The shorter inverse transform is a box filter under the triangle's: measured 1.1 levels on
    average over all sizes; half a pixel's shift gives 2.5."""
    picture = texture(300, 420)
    box = Box(20, 31, 250, 333)
    data = encoded(picture, quality=95)
    found = decode_part(data, "x", lambda *_: box, (side, side))
    expected = resample_reference(decode_image(data, "x"), box, (side, side))
    assert np.abs(found.astype(int) - expected).mean() < 1.3


def texture(height: int, width: int) -> np.ndarray:
    """Smooth waves in every channel, some of them a few pixels long."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / 9 + c) + np.sin(x / (6 + c)) + np.sin((x + y) / 3) / 2 for c in range(3)]
    return (127 + 50 * np.stack(waves, -1)).astype(np.uint8)


def test_a_picture_too_large_to_hold_is_refused_before_it_is_decoded():
    out = io.BytesIO()
    Image.new("1", (9100, 9100)).save(out, "PNG")
    with pytest.raises(
        MediaError, match=r"a: too large a picture \(9100 x 9100\); allowed: 80,000"
    ):
        decode_image(out.getvalue(), "a")
