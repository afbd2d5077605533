"""The native kernels and their numpy references give the same results."""

from __future__ import annotations

import numpy as np
import pytest

from ovtrain.codec import kernels
from tests.unit.codec.pictures import texture

SIZES = [(64, 64), (61, 83), (7, 5), (8, 129)]
needs_native = pytest.mark.skipif(kernels._native is None, reason="extension not built")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@needs_native
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("block", "radius"), [(8, 7), (8, 0), (16, 3), (5, 9)])
def test_native_block_motion_equals_the_reference(size, block, radius, rng):
    past = texture(*size)
    noise = rng.integers(-6, 7, size)
    current = np.clip(np.roll(past, (2, -3), (0, 1)) + noise, 0, 255).astype(np.uint8)
    found = kernels.block_motion(current, past, block, radius)
    expected = kernels.block_motion_reference(current, past, block, radius)
    np.testing.assert_array_equal(found, expected)


@needs_native
@pytest.mark.parametrize("size", SIZES)
def test_native_compensation_equals_the_reference(size, rng):
    past = texture(*size)
    motion = rng.integers(-200, 200, (-(-size[0] // 4), -(-size[1] // 4), 2)).astype(np.int16)
    whole_pixels = motion // 16 * 4
    for vectors in (motion, whole_pixels):
        expected = kernels.compensate_reference(past, vectors)
        np.testing.assert_array_equal(kernels.compensate(past, vectors), expected)


@needs_native
@pytest.mark.parametrize("size", SIZES)
def test_native_means_equal_the_reference(size, rng):
    values = rng.random(size, dtype=np.float32)
    rows, columns = np.linspace(0.3, size[0] - 0.2, 5), np.linspace(0, size[1], 4)
    found = kernels.patch_means(values, rows, columns)
    # both sum in float64 and differ in the order of the sums alone
    np.testing.assert_allclose(
        found, kernels.patch_means_reference(values, rows, columns), rtol=1e-6
    )


def test_means_over_whole_cells_are_plain_means(rng):
    values = rng.random((28, 42), dtype=np.float32)
    found = kernels.patch_means(values, np.arange(0.0, 29, 14), np.arange(0.0, 43, 14))
    plain = values.reshape(2, 14, 3, 14).mean(axis=(1, 3))
    np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_flat_pictures_prefer_zero_motion():
    flat = np.full((32, 32), 90, np.uint8)
    assert not kernels.block_motion(flat, flat, 8, 7).any()
    assert not kernels.block_motion_reference(flat, flat, 8, 7).any()


@needs_native
def test_native_kernels_refuse_shapes_that_disagree():
    with pytest.raises(ValueError, match="one size"):
        kernels.block_motion(np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8), 8, 7)
    with pytest.raises(ValueError, match="ceil"):
        kernels.compensate(np.zeros((8, 8), np.uint8), np.zeros((3, 2, 2), np.int16))
