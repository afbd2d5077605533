import time

import numpy as np
import pytest

from clustering.descriptor import DescriptorTeacher, luma_grid
from clustering.motion_fit import blur, measure
from ovtrain.schema.errors import ConfigError
from tests.unit.clustering.shapes import moving_square, texture, travel

TURN = 2 * np.pi


def still(u):
    return (56, 56, 0.3, 1.0)


def spin(sense):
    return lambda u: (56, 56, sense * TURN * u, 1.0)


def zoom(sense):
    return lambda u: (56, 56, 0.3, np.exp(sense * 0.5 * (u - 0.5)))


def orbit(sense):
    return lambda u: (
        56 + 16 * np.cos(sense * TURN * u + 1),
        56 + 16 * np.sin(sense * TURN * u + 1),
        0.3,
        1.0,
    )


def motion_of(frames):
    return measure(blur(luma_grid(frames)))


def weighted(motion):
    return (motion.flow * motion.mass[:, None]).sum(0) / motion.mass.sum()


def test_shift_of_a_travelling_square_is_measured():
    vx, vy, _, _ = weighted(motion_of(moving_square(travel(40, -20))))
    step = 1 / 31 / 2  # pixels of the 56 grid per frame and pixel of travel
    assert vx == pytest.approx(40 * step, rel=0.25)
    assert vy == pytest.approx(-20 * step, rel=0.25)


def test_camera_shift_is_measured_and_a_still_sprite_does_not_count():
    panned = motion_of(moving_square(still, pan=(0.6, 0.3)))
    moving = motion_of(moving_square(travel(40, 0), pan=(0.6, 0.3)))
    assert np.median(panned.camera, axis=0) == pytest.approx([0.3, 0.15], abs=0.05)
    assert panned.mass.mean() < 0.2 * moving.mass.mean()
    assert weighted(moving)[0] > 0.3


@pytest.mark.parametrize("sense", [1, -1])
def test_sign_of_curl_tells_the_sense_of_a_spin(sense):
    assert weighted(motion_of(moving_square(spin(sense))))[3] * sense > 0.02


@pytest.mark.parametrize("sense", [1, -1])
def test_sign_of_divergence_tells_growth_from_shrinkage(sense):
    assert weighted(motion_of(moving_square(zoom(sense))))[2] * sense > 0.002


@pytest.mark.parametrize(("luma", "sign"), [(220.0, 1), (40.0, -1)])
def test_tone_tells_whether_the_light_or_the_dark_thing_moves(luma, sign):
    assert motion_of(moving_square(travel(40, 0), luma=luma)).tone.sum() * sign > 0


def test_same_motion_is_nearer_than_same_appearance():
    kinds = [travel(40, 0), travel(-40, 0), travel(0, 40), spin(1), spin(-1), orbit(1), orbit(-1)]
    kinds += [zoom(1), zoom(-1)]
    teacher = DescriptorTeacher("video")
    first, other = (teacher.features([moving_square(k, seed) for k in kinds]) for seed in (1, 2))
    distance = np.linalg.norm(first[:, None] - other[None], axis=-1)
    assert distance.argmin(axis=1).tolist() == list(range(len(kinds)))


def test_features_are_repeatable_finite_and_of_the_stated_width():
    teacher = DescriptorTeacher("video")
    clip = moving_square(travel(40, 0))
    once = teacher.features([clip, np.zeros_like(clip)])
    assert once.shape == (2, teacher.width)
    assert once.dtype == np.float32
    assert np.isfinite(once).all()
    assert (teacher.features([clip]) == once[:1]).all()


def test_any_picture_size_gives_nearly_the_same_feature():
    clip = moving_square(travel(40, 0))
    doubled = clip.repeat(2, axis=1).repeat(2, axis=2)
    teacher = DescriptorTeacher("video")
    small, large = teacher.features([clip, doubled])
    assert np.abs(small - large).max() < 0.01
    assert len(teacher.features([clip[:, :90, :71]])[0]) == teacher.width


def test_short_clips_are_refused_with_the_allowed_length():
    with pytest.raises(ConfigError, match="16 or more"):
        DescriptorTeacher("video").indices(8)
    assert DescriptorTeacher("image").indices(1) is None


def test_image_feature_tells_colours_and_directions_apart():
    teacher = DescriptorTeacher("image")
    rng = np.random.default_rng(0)
    grey = np.repeat(texture(rng)[..., None], 3, axis=-1).astype(np.uint8)
    red = grey.copy()
    red[..., 0] = np.minimum(red[..., 0].astype(int) + 90, 255)
    stripes = np.full_like(grey, 60)
    stripes[::8] = stripes[1::8] = 200
    rows = np.stack([stripes, stripes.transpose(1, 0, 2)])
    found = teacher.features([grey[None], red[None], rows[:1], rows[1:]])
    assert found.shape == (4, teacher.width)
    distance = np.linalg.norm(found[:, None] - found[None], axis=-1)
    assert distance[~np.eye(4, dtype=bool)].min() > 0.5


def test_name_says_that_it_is_for_the_demo_only():
    assert DescriptorTeacher("video").name == "descriptor-demo-only:video"


def test_one_clip_takes_far_less_than_decoding_many():
    teacher, clip = DescriptorTeacher("video"), moving_square(travel(40, 0), frames=64)
    taken = []
    for _ in range(5):
        start = time.thread_time()
        teacher.features([clip])
        taken.append(time.thread_time() - start)
    assert min(taken) < 0.05  # 10 ms measured; the bound only catches a lost vectorisation
