import shutil

import numpy as np
import pytest
import torch

from clustering.exported import ExportTeacher, grid_positions, to_patches
from clustering.teachers import open_teacher
from ovtrain.config.cluster import ClusterConfig
from ovtrain.config.model import ModelConfig
from ovtrain.data.views import frames_view, gather_patches
from ovtrain.export import save_encoder
from ovtrain.inference import Embedder
from ovtrain.models.encoder import build_encoder
from ovtrain.schema.errors import CheckpointError, ConfigError
from ovtrain.schema.grid import PatchGrid

SIDE = 56


def export(folder, **settings):
    encoder = build_encoder(ModelConfig(preset="nano", init_std=0.1, **settings), seed=0)
    save_encoder(encoder, folder, image_size=SIDE)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(tmp_path_factory.mktemp("export") / "encoder")


def clip(frames, side=SIDE, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


def unit(x):
    return (x / x.norm(dim=-1, keepdim=True)).numpy()


def test_a_clip_is_one_pass_over_its_frames_at_their_places(folder):
    teacher = ExportTeacher(folder, "video", 4)
    frames = clip(4)
    places = teacher.indices(64)
    wanted = Embedder.load(folder).frames(list(frames), t=places).pooled
    assert places == [8, 24, 40, 56]
    assert teacher.features([frames])[0] == pytest.approx(unit(wanted), abs=1e-5)
    moved = Embedder.load(folder).frames(list(frames), t=[0, 1, 2, 3]).pooled
    assert np.abs(unit(moved) - unit(wanted)).max() > 1e-3


def test_it_sees_what_the_frames_view_of_a_clip_shows(folder):
    teacher = ExportTeacher(folder, "video", 4)
    grid = PatchGrid.from_pixels(64, SIDE, SIDE, 14)
    plan = frames_view(grid, 4, None)
    assert (grid_positions(teacher.places, 4).numpy() == plan.positions).all()
    frames = clip(64)
    pixels = torch.from_numpy(frames[teacher.indices(64)]).permute(0, 3, 1, 2)
    assert (to_patches(pixels, 14).numpy() == gather_patches(frames, plan.where, 14)).all()


def test_an_image_is_the_picture_at_the_encoders_side(folder):
    teacher = ExportTeacher(folder, "image")
    picture = clip(1, 80)
    wanted = Embedder.load(folder).image(picture[0]).pooled
    assert teacher.indices(1) == [0]
    assert teacher.features([picture])[0] == pytest.approx(unit(wanted), abs=1e-2)  # a level apart


def test_samples_of_a_batch_do_not_mix(folder):
    teacher = ExportTeacher(folder, "video", 2)
    samples = [clip(2, seed=1), clip(2, 80, seed=2), clip(2, seed=3)]
    together = teacher.features(samples)
    assert together.shape == (3, teacher.width)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1)
    for row, sample in zip(together, samples, strict=True):
        assert row == pytest.approx(teacher.features([sample])[0], abs=1e-5)


def test_config_opens_it_and_its_name_tells_weights_and_frames(folder, tmp_path):
    config = ClusterConfig(teacher="ovtrain", teacher_dir=str(folder), frames=2)
    name = open_teacher(config, "video").name
    assert name.startswith("ovtrain:encoder:")
    assert name != ExportTeacher(folder, "video", 3).name
    copy = shutil.copytree(folder, tmp_path / "encoder")
    assert ExportTeacher(copy, "video", 2).name == name
    weights = copy / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-3] ^= 1
    weights.write_bytes(raw)
    assert ExportTeacher(copy, "video", 2).name != name


def test_an_encoder_without_pooling_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="without pooling"):
        ExportTeacher(export(tmp_path / "e", pooling=False), "image")


def test_more_frames_than_the_virtual_grid_are_refused(folder):
    with pytest.raises(ConfigError, match="frames=65; allowed: 1 to 64"):
        ExportTeacher(folder, "video", 65)


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: missing"):
        ExportTeacher(tmp_path, "image")


def test_weights_that_are_missing_are_an_error_with_the_first_batch(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "encoder")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: unreadable"):
        ExportTeacher(copy, "image").features([clip(1)])
