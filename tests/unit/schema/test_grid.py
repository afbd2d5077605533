"""Positions and flat indices are inverses; geometry rejects what it would have to floor."""

import numpy as np
import pytest

from ovtrain.schema.errors import ConfigError
from ovtrain.schema.grid import PatchGrid

GRID = PatchGrid(5, 3, 4)


def test_flat_and_positions_are_inverses():
    flat = np.arange(GRID.size)
    positions = GRID.positions(flat)
    assert positions.shape == (60, 3)
    assert np.array_equal(GRID.flat(positions), flat)


def test_the_order_is_t_then_h_then_w():
    assert GRID.positions(np.array([0, 1, 4, 12])).tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 1, 0],
        [1, 0, 0],
    ]


def test_a_frame_holds_its_own_patches_in_raster_order():
    frame = GRID.frame_positions(2)
    assert len(frame) == GRID.tokens_per_frame == 12
    assert (frame[:, 0] == 2).all()
    assert np.array_equal(GRID.flat(frame), np.arange(24, 36))


def test_pixels_must_be_whole_patches():
    assert PatchGrid.from_pixels(64, 224, 448) == PatchGrid(64, 16, 32)
    with pytest.raises(ConfigError, match=r"width=225.*use 224 or 238"):
        PatchGrid.from_pixels(1, 224, 225)
    with pytest.raises(ConfigError, match="height=0"):
        PatchGrid.from_pixels(1, 0, 14)


def test_small_budgets_keep_one_whole_frame():
    grid = PatchGrid(64, 16, 16)
    assert [grid.whole_frames(budget) for budget in (256, 1023, 1024, 2048)] == [1, 1, 2, 2]
