import json
import shutil

import numpy as np
import pytest

from clustering.clip import ClipTeacher
from clustering.teachers import open_teacher, uniform_indices
from ovtrain.config.cluster import ClusterConfig
from ovtrain.schema.errors import ConfigError

transformers = pytest.importorskip("transformers")

WIDTH, SIZE = 16, 28


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random CLIP of a few thousand weights, saved as transformers saves one."""
    out = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "projection_dim": WIDTH}
    config = transformers.CLIPConfig(
        text_config=tower | {"vocab_size": 64, "max_position_embeddings": 8},
        vision_config=tower | {"image_size": SIZE, "patch_size": 14},
        projection_dim=WIDTH,
    )
    transformers.set_seed(0)
    transformers.CLIPModel(config).save_pretrained(out)
    stats = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.3]}
    (out / "preprocessor_config.json").write_text(json.dumps(stats))
    return out


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def clip(frames, height=40, width=56):
    rng = np.random.default_rng(3)
    return rng.integers(0, 255, (frames, height, width, 3), dtype=np.uint8)


def test_video_is_the_normalised_concatenation_of_its_frames(folder):
    frames = clip(4)
    video = ClipTeacher(folder, "video", frames=4)
    image = ClipTeacher(folder, "image")
    whole = video.features([frames])
    apart = image.features([frame[None] for frame in frames])
    assert video.width == 4 * WIDTH == whole.shape[1]
    assert np.linalg.norm(apart, axis=1) == pytest.approx(1)
    assert whole[0] == pytest.approx(apart.ravel() / 2, abs=1e-5)


def test_samples_of_a_batch_do_not_mix(folder):
    teacher = ClipTeacher(folder, "video", frames=2)
    both = teacher.features([clip(2), clip(2)[::-1]])
    assert both[1] == pytest.approx(np.roll(both[0], WIDTH), abs=1e-5)


def test_frames_are_taken_uniformly(folder):
    assert ClipTeacher(folder, "video", frames=8).indices(64) == [4, 12, 20, 28, 36, 44, 52, 60]
    assert uniform_indices(3, 8) == [0, 0, 0, 1, 1, 2, 2, 2]


def test_name_changes_with_the_weights(folder, copy):
    before = ClipTeacher(copy, "image").name
    assert before.split(":")[2] == ClipTeacher(folder, "image").name.split(":")[2]
    weights = copy / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-3] ^= 1
    weights.write_bytes(raw)
    assert ClipTeacher(copy, "image").name != before


def test_config_opens_it(folder):
    config = ClusterConfig(teacher="clip", teacher_dir=str(folder), frames=2)
    assert open_teacher(config, "video").width == 2 * WIDTH


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        ClipTeacher(tmp_path / "nowhere", "image")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "config.json: missing"),
        ("preprocessor_config.json", "preprocessor_config.json: missing"),
        ("model.safetensors", "no weights here"),
    ],
)
def test_missing_file_is_named(copy, name, said):
    (copy / name).unlink()
    with pytest.raises(ConfigError, match=said):
        ClipTeacher(copy, "image")


def test_another_kind_of_model_is_refused(copy):
    (copy / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="model_type=bert; allowed: clip"):
        ClipTeacher(copy, "image")


def test_damaged_weights_are_an_error(copy):
    (copy / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(ConfigError, match="does not load"):
        ClipTeacher(copy, "image")


def test_missing_tensors_are_an_error_not_random_numbers(copy):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 weights are missing, first visual_projection"):
        ClipTeacher(copy, "image")
