"""Energy is the formula of the paper; motion fields are vectors per picture without the camera."""

from __future__ import annotations

import numpy as np
import pytest

from ovtrain.codec import kernels
from ovtrain.codec.bitstream import UNKNOWN_DELTA, CodecSignals
from ovtrain.codec.energy import clip_energy, measure_clip, patch_edges
from ovtrain.codec.estimate import estimate_signals
from ovtrain.codec.motion import join_lists, motion_field
from ovtrain.config.prepare import EnergyConfig
from ovtrain.schema.errors import CodecError
from ovtrain.schema.grid import PatchGrid
from tests.unit.codec.pictures import moving_square, pan

PLAIN = EnergyConfig(camera="none")


def make(seed=0, height=56, width=70, kind="P", ok=True, lists=1):
    rng = np.random.default_rng(seed)
    blocks = (-(-height // 4), -(-width // 4))
    motion = rng.integers(-60, 60, (*blocks, 2, 2)).astype(np.int16)
    delta = rng.choice(np.array([0, 1, 2, 3], np.int16), (*blocks, 2))
    delta[..., lists:] = 0
    motion[delta == 0] = 0
    residual = (rng.normal(size=(height, width)) * 8).astype(np.int16)
    return CodecSignals(kind, 0.0, 0, motion, delta, residual, "pixel-estimate", ok)


def formula(signals, patch):
    """The paper's energy in plain float64, for frames of the grid's size and one list."""
    height, width = signals.residual.shape
    delta = np.maximum(signals.reference_delta[..., 0], 1)
    vectors = signals.motion[:, :, 0] / 4.0 / delta[..., None]
    speed = np.hypot(vectors[..., 0], vectors[..., 1]).repeat(4, 0).repeat(4, 1)[:height, :width]
    residual = np.abs(signals.residual.astype(np.float64))
    motion = np.clip(speed / max(np.percentile(speed, 95), 1e-6), 0, 1)
    residual = np.clip(residual / max(np.percentile(residual, 95), 1), 0, 1)
    energy = (motion + residual) / 2
    return energy.reshape(height // patch, patch, width // patch, patch).mean(axis=(1, 3))


@pytest.mark.parametrize("size", [(56, 70), (42, 42)])
def test_energy_is_the_formula(size):
    grid = PatchGrid.from_pixels(3, *size)
    frames = [make(seed, *size) for seed in range(3)]
    found = clip_energy(frames, grid, PLAIN)
    assert found.dtype == np.uint16
    expected = np.stack([formula(s, grid.patch) for s in frames]) * 65535
    # half a level of rounding, and float32 before it
    assert np.abs(found - expected).max() < 0.6


def test_clip_percentiles_are_those_of_all_pixels():
    frames = [make(0), make(1)]
    frames[1].residual[:] *= 4
    grid = PatchGrid.from_pixels(2, 56, 70)
    config = EnergyConfig(camera="none", normalise="clip", motion_weight=0.0)
    both = np.abs(np.stack([s.residual for s in frames]).astype(np.float64))
    clipped = np.clip(both / np.percentile(both, 95), 0, 1)
    expected = clipped.reshape(2, 4, 14, 5, 14).mean(axis=(2, 4)) * 65535
    found = clip_energy(frames, grid, config)
    assert np.abs(found - expected).max() < 0.6
    assert found[1].mean() > 2 * found[0].mean()


def test_weights_share_the_energy():
    grid, frames = PatchGrid.from_pixels(1, 56, 70), [make(3)]
    motion = clip_energy(frames, grid, EnergyConfig(camera="none", residual_weight=0.0))
    residual = clip_energy(frames, grid, EnergyConfig(camera="none", motion_weight=0.0))
    mixed = clip_energy(frames, grid, EnergyConfig(camera="none", motion_weight=3.0))
    assert np.abs(mixed - (3.0 * motion + residual) / 4).max() < 1.5


def test_signals_of_another_size_land_where_resize_and_crop_puts_them():
    rows, columns = patch_edges(PatchGrid(1, 8, 8), 240, 320)
    assert (rows[0], rows[-1]) == (0, 240)
    np.testing.assert_allclose(columns[[0, -1]], [18 * 320 / 149, 130 * 320 / 149])
    residual = np.zeros((240, 320), np.int16)
    residual[:, 155:165] = 100
    blank = np.zeros((60, 80, 2, 2), np.int16)
    signals = CodecSignals("P", 0.0, 0, blank, blank[..., 0], residual, "pixel-estimate", True)
    (found,) = clip_energy([signals], PatchGrid(1, 8, 8), EnergyConfig(motion_weight=0.0))
    assert (found[:, 3:5] > 0).all()
    assert not found[:, :3].any()
    assert not found[:, 5:].any()


def test_the_same_content_at_twice_the_size_has_the_same_energy():
    small = make(5, 56, 56)
    large = CodecSignals(
        "P",
        0.0,
        0,
        small.motion.repeat(2, 0).repeat(2, 1),
        small.reference_delta.repeat(2, 0).repeat(2, 1),
        small.residual.repeat(2, 0).repeat(2, 1),
        "pixel-estimate",
    )
    grid = PatchGrid.from_pixels(1, 56, 56)
    a, b = (clip_energy([s], grid, PLAIN).astype(int) for s in (small, large))
    # percentiles of four times as many pixels interpolate between other ranks
    assert np.abs(a - b).max() < 65535 * 0.01


def test_intra_and_damaged_frames_take_their_nearest_neighbour():
    frames = [make(0, kind="I"), make(1), make(2, kind="I"), make(3), make(4, ok=False)]
    clip = measure_clip(frames, PatchGrid.from_pixels(5, 56, 70), PLAIN)
    assert (clip.intra, clip.damaged) == (2, 1)
    np.testing.assert_array_equal(clip.map[0], clip.map[1])
    np.testing.assert_array_equal(clip.map[2], clip.map[3])
    np.testing.assert_array_equal(clip.map[4], clip.map[3])
    assert clip.map[1].any()


def test_a_clip_of_intra_frames_has_no_energy():
    clip = measure_clip([make(0, kind="I")] * 2, PatchGrid.from_pixels(2, 56, 70), PLAIN)
    assert not clip.map.any()
    assert clip.intra == 2


def test_energies_of_skipped_frames_add_to_the_next_one_taken():
    frames = [make(seed) for seed in range(6)]
    every = clip_energy(frames, PatchGrid.from_pixels(6, 56, 70), PLAIN).astype(np.float64)
    grid = PatchGrid.from_pixels(2, 56, 70)
    summed = clip_energy(frames, grid, PLAIN, frame_indices=[1, 5])
    expected = np.stack([every[:2].sum(axis=0), every[2:].sum(axis=0)]) / 4
    assert np.abs(summed - expected).max() < 1
    alone = clip_energy(frames, grid, PLAIN, frame_indices=[1, 5], accumulate=False)
    np.testing.assert_array_equal(alone, every[[1, 5]])
    repeated = clip_energy(frames, grid, PLAIN, frame_indices=[0, 0])
    np.testing.assert_array_equal(repeated, every[[0, 0]])


def test_a_source_that_ends_early_is_an_error():
    with pytest.raises(CodecError, match="2 frames; frame 2 is asked for"):
        clip_energy([make(0), make(1)], PatchGrid.from_pixels(3, 56, 70), PLAIN)
    grid = PatchGrid.from_pixels(2, 56, 70)
    with pytest.raises(CodecError, match="rising"):
        clip_energy([make(0), make(1)], grid, PLAIN, frame_indices=[1, 0])


def test_median_camera_removes_a_pan():
    signals = list(estimate_signals(pan(3), [0.0, 1.0, 2.0], ["I", "P", "P"]))[2]
    moved = motion_field(signals, PLAIN)
    assert np.abs(np.median(moved.reshape(-1, 2), axis=0)).tolist() == [2, 1]
    still = motion_field(signals, EnergyConfig(camera="median"))
    assert (np.abs(still).max(axis=2) == 0).mean() > 0.9


def test_the_camera_of_a_mostly_intra_frame_is_left_alone():
    signals = make(0)
    signals.reference_delta[3:] = 0
    signals.motion[3:] = 0
    kept = motion_field(signals, EnergyConfig(camera="median"))
    np.testing.assert_array_equal(kept, motion_field(signals, PLAIN))


def test_blocks_without_a_vector_stay_at_zero_under_compensation():
    signals = make(0)
    field = motion_field(signals, EnergyConfig(camera="median"))
    assert not field[signals.reference_delta[..., 0] == 0].any()
    assert field.any()


def test_lists_are_joined_in_one_sense_and_per_picture():
    motion = np.zeros((1, 4, 2, 2), np.int16)
    delta = np.zeros((1, 4, 2), np.int16)
    motion[0, 0], delta[0, 0] = [(8, 0), (-24, 0)], (1, -2)
    motion[0, 1], delta[0, 1] = [(24, 0), (0, 0)], (3, 0)
    motion[0, 2], delta[0, 2] = [(0, 0), (8, 4)], (0, UNKNOWN_DELTA)
    blank = np.zeros((4, 16), np.int16)
    signals = CodecSignals("B", 0.0, 0, motion, delta, blank, "h264-export")

    def x(lists, per_reference_distance):
        return join_lists(signals, lists, per_reference_distance)[0][0, :, 0].tolist()

    assert x("max", True) == [3, 2, -2, 0]
    assert x("max", False) == [6, 6, -2, 0]
    assert x("sum", True) == [5, 2, -2, 0]
    assert x("l0", True) == [2, 2, 0, 0]
    assert x("l1", True) == [3, 0, -2, 0]
    assert join_lists(signals, "max", True)[1].tolist() == [[True, True, True, False]]


def test_without_the_extension_the_energy_is_the_same(monkeypatch):
    def measure():
        signals = estimate_signals(moving_square(3), [0.0] * 3, ["I", "P", "P"])
        return clip_energy(signals, PatchGrid.from_pixels(3, 112, 112), EnergyConfig()).astype(int)

    found = measure()
    monkeypatch.setattr(kernels, "_native", None)
    assert np.abs(measure() - found).max() <= 1


def test_energy_follows_the_moving_square():
    luma = moving_square(8)
    signals = estimate_signals(luma, [0.0] * 8, ["I"] + ["P"] * 7)
    energy = clip_energy(signals, PatchGrid.from_pixels(8, 112, 112), EnergyConfig())
    # frame 4: the square covers x 28..68, y 32..72, patches 2..4 by 2..4 mostly
    assert energy[4, 3:5, 2:5].mean() > 4 * energy[4, 6:, 6:].mean()
