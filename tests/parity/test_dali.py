"""DALI's pictures against Pillow's, within a few levels of 255.

What differs is the rounding of the resampler's weights and sampling places: measured 2 levels at
most on smooth pictures, 18 (4 on average) on a chequerboard shrunk to three pixels per field, the
worst case. A crop that is off by one pixel gives 60 on average there, a picture of the call before
about 90.
"""

import os

import numpy as np
import pytest

from ovtrain.data.decode.base import PillowImages
from ovtrain.schema.errors import MediaError
from tests.helpers.shards import jpeg

pytestmark = pytest.mark.dali
if not os.environ.get("CI"):  # in CI its absence is a failure
    pytest.importorskip("nvidia.dali")


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """Gradients and soft blobs: what photographs are made of, without hard edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = []
    for _ in range(3):
        fy, fx, phase = *rng.uniform(0.5, 3, 2), rng.uniform(0, 6)
        planes.append(127 + 100 * np.sin(fy * y / height * 3 + fx * x / width * 3 + phase))
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


def chequerboard(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([((x // 16 + y // 16) % 2 * 200 + 20).astype(np.uint8)] * 3, -1)


def test_pictures_agree_within_a_few_levels():
    from ovtrain.data.decode.dali import DaliImages

    sides = {"same": (56, 56), "wide": (80, 112), "tall": (131, 97), "odd rest": (300, 500)}
    data = [jpeg(smooth(*side, seed)) for seed, side in enumerate(sides.values())]
    data.append(jpeg(chequerboard(300, 400)))
    names = [*sides, "chequerboard"]
    plain, dali = PillowImages(56)(data, names), DaliImages(56, batch=2)(data, names)
    for name, expected, found in zip(names, plain, dali, strict=True):
        assert not isinstance(expected, MediaError)
        assert not isinstance(found, MediaError)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), name
        difference = np.abs(found.astype(int) - expected.astype(int))
        mean, most = (6, 24) if name == "chequerboard" else (1, 4)
        assert difference.mean() < mean, name
        assert difference.max() <= most, name


def test_a_call_gets_its_own_pictures():
    """Pipelines that fetch ahead give the pictures of the call before."""
    from ovtrain.data.decode.dali import DaliImages

    decoder = DaliImages(56)
    pictures = [jpeg(smooth(56, 56, seed)) for seed in range(4)]
    expected = PillowImages(56)(pictures, list("abcd"))
    for picture, wanted in zip(pictures, expected, strict=True):
        (found,) = decoder([picture], ["x"])
        assert np.abs(np.subtract(found, wanted, dtype=int)).max() <= 4


def test_a_broken_picture_costs_only_itself():
    from ovtrain.data.decode.dali import DaliImages

    good = jpeg(smooth(56, 56, 0))
    found = DaliImages(56)([good, b"not a jpeg", good[:200], good], ["a", "b", "c", "d"])
    assert [isinstance(x, MediaError) for x in found] == [False, True, True, False]
    assert np.array_equal(found[0], found[3])
    assert "b: not a readable picture" in str(found[1])
