"""What is drawn for a sample, and what the draws mean."""

import colorsys

import numpy as np
import pytest

from ovtrain.config.data import AugmentConfig
from ovtrain.data.augment import Augmentation, Crop
from ovtrain.data.pixels import recolour

RNG = np.random.default_rng


def changed(look: Augmentation, *rgb: int) -> list[int]:
    patch = np.array([rgb], np.uint8)
    colours = look.colours
    assert colours is not None
    recolour(patch, colours)
    return patch[0].tolist()


def test_no_augmentation_changes_nothing():
    assert Augmentation.draw(AugmentConfig(), RNG(0)) == Augmentation()
    assert Augmentation().colours is None


def test_draws_stay_in_their_bounds_and_reach_them():
    config = AugmentConfig(gain=0.2, shift=3, contrast=0.3, saturation=0.5)
    draws = [Augmentation.draw(config, RNG(seed)) for seed in range(300)]
    for name, bound in {"gain": 0.2, "contrast": 0.3, "saturation": 0.5}.items():
        values = [getattr(draw, name) for draw in draws]
        assert 1 - bound <= min(values) < 1 - 0.95 * bound
        assert 1 + 0.95 * bound < max(values) <= 1 + bound
    assert {d.offset[0] for d in draws} == {d.offset[1] for d in draws} == set(range(-3, 4))


def test_a_gain_scales_every_channel():
    assert changed(Augmentation(gain=1.5), 0, 10, 200) == [0, 15, 255]


def test_contrast_stretches_around_mid_grey():
    assert changed(Augmentation(contrast=1.5), 127, 128, 187) == [127, 128, 217]
    assert changed(Augmentation(contrast=0.5), 0, 255, 100) == [64, 191, 114]


def test_saturation_moves_colours_to_and_from_their_grey():
    assert changed(Augmentation(saturation=1.4), 90, 90, 90) == [90, 90, 90]
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert changed(Augmentation(saturation=1e-9), 200, 100, 50) == [grey] * 3
    more = changed(Augmentation(saturation=1.3), 150, 120, 100)
    before, after = (colorsys.rgb_to_hsv(*np.divide(c, 255)) for c in ((150, 120, 100), more))
    assert after[1] > before[1]
    assert after[0] == pytest.approx(before[0], abs=0.01)


def test_one_map_does_all_colours_in_their_order():
    look = Augmentation(gain=0.9, contrast=1.1, saturation=0.8)
    rgb = np.array([120.0, 80.0, 140.0])
    grey = rgb @ [0.299, 0.587, 0.114]
    expected = 127.5 + 1.1 * (0.9 * (grey + 0.8 * (rgb - grey)) - 127.5)
    assert changed(look, 120, 80, 140) == np.floor(expected + 0.5).tolist()


def test_without_crops_the_largest_square_at_the_centre_is_shown():
    assert Crop().box(30, 50) == (0, 10, 30, 30)
    assert Crop().box(31, 20) == (5.5, 0, 20, 20)


def test_crops_hold_their_share_and_aspect_and_lie_inside():
    config = AugmentConfig(crop_area=[0.2, 0.6], crop_aspect=[0.5, 2.0])
    shares, aspects, places = [], [], []
    for seed in range(400):
        box = Crop.draw(config, RNG(seed)).box(200, 300)
        assert box.top >= 0
        assert box.left >= 0
        assert box.top + box.height <= 200
        assert box.left + box.width <= 300
        shares.append(box.height * box.width / 60000)
        aspects.append(box.width / box.height)
        places.append(box.left / max(300 - box.width, 1e-9))
    assert max(shares) <= 0.6 + 1e-9
    assert 0.5 - 1e-9 <= min(aspects) < 0.55
    assert 1.8 < max(aspects) <= 2 + 1e-9
    assert 0.4 < np.mean(np.log(aspects) > 0) < 0.6  # tall and wide are alike
    assert min(places) < 0.05
    assert max(places) > 0.95
    assert np.mean(np.array(shares) < 0.2 - 1e-9) < 0.02  # hardly any had to shrink


def test_a_crop_that_does_not_fit_shrinks_until_it_does():
    box = Crop(area=1.0, aspect=0.5, place=(0.0, 1.0)).box(100, 400)
    assert box == pytest.approx((0, 350, 100, 50))


def test_nothing_is_drawn_where_nothing_is_cropped():
    rng = RNG(0)
    assert Crop.draw(AugmentConfig(), rng) == Crop()
    assert rng.random() == RNG(0).random()
