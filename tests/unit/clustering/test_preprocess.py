import json

import numpy as np
import pytest
import torch
from PIL import Image

from clustering.preprocess import of_open_clip, of_transformers
from ovtrain.schema.errors import ConfigError

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
SIDE = 56
TALL = (301, 77)
SHAPES = [(80, 80), (56, 56), (81, 123), TALL, (40, 57), (57, 200)]
SETTINGS = {
    "clip": {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}},
    "larger": {"size": {"shortest_edge": 64}, "crop_size": {"height": SIDE, "width": SIDE}},
    "squash": {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False},
    "bilinear": {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False, "resample": 2},
    "bare": {
        "size": {"height": SIDE, "width": SIDE},
        **{"do_center_crop": False, "do_normalize": False, "do_rescale": False},
    },
}
MOST, MEAN = 2.0, 0.01
"""Difference to Pillow in levels of 255, at a place in a hundred. Its weights have 22 bits; where a
value lies between two levels after both passes, it may be two."""
TALL_MEAN = 0.4
"""Some releases of Pillow resize the heights of a tall picture before its widths; of noise, that is
clipped in between, 0.35 levels are left."""


def pictures(height, width):
    """Noise, where resizing overshoots, and a smooth picture."""
    rng = np.random.default_rng(height)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return [noise, np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_those_of_transformers_own_processor(tmp_path, settings, shape):
    processor = transformers.CLIPImageProcessorPil(**settings)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    made = of_transformers(json.loads(path.read_text()), path)
    both = pictures(*shape)
    found = made([picture[None] for picture in both], CPU).numpy()
    wanted = processor(both, return_tensors="np")["pixel_values"]
    assert found.shape == wanted.shape
    std = np.array(made.std).reshape(3, 1, 1)
    apart = np.abs(found - wanted) * std / made.scale
    assert apart.mean() <= (TALL_MEAN if shape == TALL else MEAN)
    assert shape == TALL or apart.max() <= MOST + 1e-3


def test_old_settings_say_the_same_in_fewer_words(tmp_path):
    new = transformers.CLIPImageProcessorPil(**SETTINGS["clip"]).to_dict()
    stats = {key: new[key] for key in ("image_mean", "image_std", "resample")}
    old = stats | {"size": SIDE, "crop_size": SIDE}
    assert of_transformers(old, tmp_path) == of_transformers(new, tmp_path)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_open_clips_settings_mean_what_transformers_do(tmp_path, mode):
    stats = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]}
    found = of_open_clip({**stats, "interpolation": "bicubic", "resize_mode": mode}, SIDE, tmp_path)
    wanted = SETTINGS["clip" if mode == "shortest" else "squash"]
    stats = {"image_mean": stats["mean"], "image_std": stats["std"], "resample": 3}
    assert found == of_transformers(stats | wanted, tmp_path)


def test_many_pictures_at_once_are_those_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("clustering.preprocess.MOST_PIXELS", 2 * 80 * 80)
    settings = transformers.CLIPImageProcessorPil(**SETTINGS["clip"]).to_dict()
    made = of_transformers(settings, tmp_path)
    samples = [p[None] for shape in (SHAPES[0], SHAPES[2]) * 3 for p in pictures(*shape)]
    apart = torch.cat([made([sample], CPU) for sample in samples])
    assert torch.equal(made(samples, CPU), apart)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": None}, "size=None"),
        ({"size": {"longest_edge": 56}}, "size=.*longest_edge"),
        ({"size": {"shortest_edge": 40}}, r"a crop of \(56, 56\) out of pictures resized to 40"),
        ({"resample": 1}, "resample=1; allowed: 2 .bilinear., 3 .bicubic."),
        ({"image_std": [1, 1]}, "three numbers"),
        ({"do_center_crop": False}, "pictures keep their own sizes"),
        ({"crop_size": {"height": 0, "width": 4}}, "crop_size=0"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(tmp_path, changes, said):
    settings = transformers.CLIPImageProcessorPil(**SETTINGS["clip"]).to_dict()
    with pytest.raises(ConfigError, match=said):
        of_transformers(settings | changes, tmp_path)


@pytest.mark.parametrize("key", ["size", "image_mean", "image_std", "resample"])
def test_a_setting_that_is_not_there_is_not_guessed(tmp_path, key):
    settings = transformers.CLIPImageProcessorPil(**SETTINGS["clip"]).to_dict()
    del settings[key]
    with pytest.raises(ConfigError, match=f"no '{key}'"):
        of_transformers(settings, tmp_path)
