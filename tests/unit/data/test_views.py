"""Each view: which patches it takes, where it says they are, and which pixels they hold."""

import numpy as np
import pytest

from ovtrain.data import views
from ovtrain.data.augment import kept_tokens
from ovtrain.schema.grid import PatchGrid

GRID = PatchGrid(8, 3, 2, patch=4)
RNG = np.random.default_rng


def pictures() -> np.ndarray:
    """(8, 12, 8, 3): every value tells its own t, y, x, c modulo 256."""
    t, y, x, c = np.indices((8, 12, 8, 3))
    return ((t * 31 + y * 7 + x * 3 + c * 100) % 256).astype(np.uint8)


def test_gathered_patches_are_channel_major_pixels_of_their_place():
    clip, where = pictures(), np.array([[0, 0, 0], [5, 2, 1], [7, 1, 0]])
    found = views.gather_patches(clip, where, 4)
    for row, (t, h, w) in enumerate(where):
        block = clip[t, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4]
        assert np.array_equal(found[row].reshape(3, 4, 4), block.transpose(2, 0, 1))


def test_the_codec_view_keeps_its_budget_and_true_times():
    energy = RNG(0).integers(0, 65535, GRID.shape).astype(np.uint16)
    plan = views.codec_view(energy, GRID, budget=20)
    assert len(np.unique(GRID.flat(plan.where))) == 20
    assert np.array_equal(plan.where, plan.positions)
    whole = [t for t in range(8) if (plan.where[:, 0] == t).sum() == GRID.tokens_per_frame]
    assert len(whole) >= GRID.whole_frames(20)


@pytest.mark.parametrize("rng", [None, RNG(1)])
def test_the_frames_view_takes_one_whole_frame_of_each_chunk(rng):
    plan = views.frames_view(GRID, 4, rng)
    frames = plan.where[:: GRID.tokens_per_frame, 0]
    assert [frame // 2 for frame in frames] == [0, 1, 2, 3]
    assert np.array_equal(plan.where, np.concatenate([GRID.frame_positions(t) for t in frames]))
    assert np.array_equal(plan.positions, plan.where)


def test_evaluation_frames_are_fixed_and_training_frames_are_not():
    fixed = [views.frames_view(GRID, 2, None).where.tolist() for _ in range(2)]
    assert fixed[0] == fixed[1]
    drawn = {tuple(views.frames_view(GRID, 2, RNG(s)).where[:, 0]) for s in range(20)}
    assert len(drawn) > 5


def test_the_tiling_view_is_the_frames_view_as_one_tall_picture():
    tiles, frames = views.tiling_view(GRID, 4, RNG(3)), views.frames_view(GRID, 4, RNG(3))
    assert np.array_equal(tiles.where, frames.where)
    assert (tiles.positions[:, 0] == 0).all()
    assert sorted(set(tiles.positions[:, 1])) == list(range(4 * GRID.height))
    clip = pictures()
    tall = clip[frames.where[:: GRID.tokens_per_frame, 0]].reshape(1, 4 * 12, 8, 3)
    assert np.array_equal(
        views.gather_patches(clip, tiles.where, 4), views.gather_patches(tall, tiles.positions, 4)
    )


def test_an_image_is_one_frame_at_t_0():
    plan = views.image_view(PatchGrid(1, 3, 2, 4))
    assert plan.positions.tolist() == [[0, h, w] for h in range(3) for w in range(2)]


def test_kept_tokens_are_sorted_distinct_and_at_least_one():
    rows = kept_tokens(100, 0.3, RNG(0))
    assert len(rows) == 30
    assert (np.diff(rows) > 0).all()
    assert kept_tokens(100, 1.0, RNG(0)).tolist() == list(range(100))
    assert len(kept_tokens(5, 0.01, RNG(0))) == 1
