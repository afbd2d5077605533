"""The loops that move pixels: what they compute, and that native and reference agree."""

import numpy as np
import pytest

from ovtrain.data import pixels
from ovtrain.data.pixels import Box
from ovtrain.data.views import gather_patches
from ovtrain.schema.grid import PatchGrid

GRID = PatchGrid(1, 3, 2, patch=4)
needs_native = pytest.mark.skipif(pixels._native is None, reason="extension not built")


@pytest.fixture(params=["native", "reference"])
def either(request, monkeypatch):
    """Both halves of the module, where there are two."""
    if request.param == "reference":
        monkeypatch.setattr(pixels, "_native", None)
    elif pixels._native is None:
        pytest.skip("extension not built")


def picture(height: int = 12, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def gathered(shown: np.ndarray, places: np.ndarray, patch: int, *args, **kwargs) -> np.ndarray:
    out = np.zeros((len(places), 3 * patch * patch), np.uint8)
    pixels.gather(shown, places, patch, out, *args, **kwargs)
    return out


def places() -> np.ndarray:
    """All of the grid, and one twice; of a frame that is not the first."""
    found = GRID.positions(np.array([5, 0, 3, 1, 2, 4, 3]))
    found[:, 0] = 7
    return found


def test_gathered_patches_are_those_of_their_places(either):
    found = gathered(picture(), places(), 4)
    assert np.array_equal(found, gather_patches(picture()[None], places() * [0, 1, 1], 4))


def test_rows_that_lie_apart_are_the_same_picture(either):
    wide = picture(12, 11)
    assert np.array_equal(
        gathered(wide[:, :8], places(), 4), gathered(wide[:, :8].copy(), places(), 4)
    )


def test_a_shift_moves_pictures_and_repeats_edges(either):
    shown = picture()
    moved = np.empty_like(shown)
    moved[2:, :-1] = shown[:-2, 1:]
    moved[:2, :-1] = shown[:1, 1:]
    moved[2:, -1], moved[:2, -1] = shown[:-2, -1], shown[0, -1]
    assert np.array_equal(gathered(shown, places(), 4, (2, -1)), gathered(moved, places(), 4))


@pytest.mark.parametrize("offset", [(0, 0), (-3, 2), (1, -40)])
def test_a_mirrored_patch_is_that_of_the_mirrored_picture(either, offset):
    shown, there = picture(), places()
    mirrored = there.copy()
    mirrored[:, 2] = GRID.width - 1 - there[:, 2]
    found = gathered(shown, there, 4, offset, mirrored=True)
    dy, dx = offset
    assert np.array_equal(found, gathered(shown[:, ::-1].copy(), mirrored, 4, (dy, -dx)))


@needs_native
@pytest.mark.parametrize("place", [(0, 3, 0), (0, 0, 2), (0, -1, 0), (0, 0, -1)])
def test_a_place_outside_of_the_picture_is_refused(place):
    with pytest.raises(IndexError, match="outside"):
        gathered(picture(), np.array([place]), 4)


@needs_native
@pytest.mark.parametrize(
    ("box", "shape"),
    [
        (Box(0, 0, 90, 70), (56, 56)),
        (Box(10.25, 3.5, 61.75, 60), (28, 56)),
        (Box(40, 20, 7, 9.5), (56, 28)),
        (Box(0, 0, 90, 70), (1, 1)),
        (Box(89, 69, 1, 1), (5, 3)),
        (Box(0, 0, 90, 70), (200, 3)),
    ],
)
def test_resampling_is_within_a_level_of_pillow(box, shape):
    """Noise, the worst case: Pillow rounds between rows and columns, which moves a result by half a
    level at most before its own rounding does by as much."""
    shown = picture(90, 70)
    found = pixels.resample(shown, box, shape)
    expected = pixels.resample_reference(shown, box, shape)
    assert (found.shape, found.dtype) == ((*shape, 3), np.uint8)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_picture_at_its_own_size_stays_as_it_is(either):
    assert np.array_equal(pixels.resample(picture(), Box(0, 0, 12, 8), (12, 8)), picture())
    part = pixels.resample(picture(), Box(2, 1, 5, 6), (5, 6))
    assert np.array_equal(part, picture()[2:7, 1:7])


@needs_native
@pytest.mark.parametrize("box", [Box(0, 0, 13, 8), Box(-1, 0, 4, 4), Box(0, 0, 0, 4)])
def test_a_box_outside_of_the_picture_is_refused(box):
    with pytest.raises(ValueError, match="outside"):
        pixels.resample(picture(), box, (4, 4))


@needs_native
def test_native_recolouring_equals_the_reference():
    rng = np.random.default_rng(1)
    for _ in range(20):
        matrix = np.column_stack([rng.normal(0.3, 0.4, (3, 3)), rng.normal(0, 40, 3)])
        patches = rng.integers(0, 256, (9, 3 * 14 * 14), dtype=np.uint8)
        expected = pixels.recolour_reference(patches, matrix)
        pixels.recolour(patches, matrix)
        assert np.array_equal(patches, expected)


def test_recolouring_rounds_halves_up_and_clips(either):
    patches = np.array([[1, 3, 200, 0] * 3], np.uint8)
    pixels.recolour(patches, np.eye(3, 4) * 1.5)
    assert patches[0, :4].tolist() == [2, 5, 255, 0]
