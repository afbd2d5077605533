"""Selections hit their budget, take the most energy, and never let time break a tie."""

from __future__ import annotations

import numpy as np
import pytest

from ovtrain.codec.selection import chunk_frames, select, whole_frames
from ovtrain.schema.errors import ConfigError
from ovtrain.schema.grid import PatchGrid


@pytest.fixture
def energy():
    return np.random.default_rng(0).integers(1, 65536, (64, 16, 16)).astype(np.uint16)


@pytest.mark.parametrize("mode", ["global", "per_frame"])
@pytest.mark.parametrize("budget", [256, 257, 512, 1023, 1024, 2048, 4096, 16383, 16384])
def test_budgets_are_hit_exactly_by_different_patches(energy, budget, mode):
    for clip in (energy, np.zeros_like(energy), energy * (energy > 60000)):
        found = select(clip, budget, mode)
        assert found.flat.shape == (budget,)
        assert found.flat.dtype == np.int64
        assert (np.diff(found.flat) > 0).all()
        assert 0 <= found.flat[0] <= found.flat[-1] < clip.size


def test_whole_frames_are_the_first_and_from_four_frames_on_the_middle_one(energy):
    grid = PatchGrid(64, 16, 16)
    assert whole_frames(grid, 1023).tolist() == [0]
    assert whole_frames(grid, 1024).tolist() == [0, 32]
    frames = select(energy, 2048).flat // 256
    assert (np.bincount(frames, minlength=64)[[0, 32]] == 256).all()


def test_the_rest_is_the_global_top(energy):
    found = select(energy, 2048)
    others = np.delete(energy, [0, 32], axis=0)
    threshold = np.sort(others.ravel())[-1536]
    kept = np.zeros(energy.size, bool)
    kept[found.flat] = True
    kept = np.delete(kept.reshape(64, -1), [0, 32], axis=0).ravel()
    assert others.ravel()[kept].min() >= threshold
    assert others.ravel()[~kept].max() <= threshold
    assert found.filled == 0


def test_ties_do_not_follow_time():
    frames = select(np.full((64, 16, 16), 7, np.uint16), 2048).flat // 256
    counts = np.delete(np.bincount(frames, minlength=64), [0, 32])
    assert counts.max() < 60
    assert abs(counts[:31].sum() - counts[31:].sum()) < 200


def test_static_clips_are_filled_from_uniformly_spaced_frames():
    energy = np.zeros((64, 16, 16), np.uint16)
    energy[5, :2] = 9
    found = select(energy, 2048)
    assert found.filled == 1536 - 32
    counts = np.bincount(found.flat // 256, minlength=64)
    filled = np.flatnonzero(np.where(np.isin(np.arange(64), [0, 5, 32]), 0, counts))
    assert len(filled) == 6
    assert np.ptp(np.diff(filled)) <= 2
    assert counts[5] == 32
    assert select(np.zeros((2, 4, 4), np.uint16), 32).filled == 16


def test_per_frame_gives_equal_parts_and_the_remainder_to_the_best_next_patches(energy):
    found = select(energy, 2048, "per_frame")
    counts = np.delete(np.bincount(found.flat // 256, minlength=64), [0, 32])
    assert set(counts) == {24, 25}
    assert (counts == 25).sum() == 1536 - 62 * 24
    ranked = np.sort(np.delete(energy, [0, 32], axis=0).reshape(62, -1), axis=1)[:, ::-1]
    following = ranked[:, 24]
    assert following[counts == 25].min() >= following[counts == 24].max()
    assert found.filled == 0
    assert select(np.zeros_like(energy), 2048, "per_frame").filled == 1536


def test_selection_is_a_pure_function(energy):
    a, b = select(energy, 2048), select(energy.copy(), 2048)
    np.testing.assert_array_equal(a.flat, b.flat)


@pytest.mark.parametrize("budget", [0, 255, 16385])
def test_impossible_budgets_name_what_is_allowed(energy, budget):
    with pytest.raises(ConfigError, match=r"256 \(one frame\) to 16384"):
        select(energy, budget)


def test_chunks_give_one_frame_each():
    assert chunk_frames(64, 8, None).tolist() == [4, 12, 20, 28, 36, 44, 52, 60]
    for seed in range(20):
        frames = chunk_frames(67, 8, np.random.default_rng(seed))
        assert (frames // 8 == np.arange(8)).all()
    same = [chunk_frames(64, 8, np.random.default_rng(3)).tolist() for _ in range(2)]
    assert same[0] == same[1]
    with pytest.raises(ConfigError):
        chunk_frames(4, 8, None)
