import json
import shutil

import numpy as np
import pytest
import torch

from clustering.clip import ClipTeacher
from clustering.frames import join_frames
from clustering.teachers import open_teacher
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
    processor(transformers.CLIPImageProcessorPil).save_pretrained(out)
    return out


def processor(kind, **settings):
    """Of no defaults: its numbers are its own."""
    stats = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.3]}
    crop = {"crop_size": {"height": SIZE, "width": SIZE}}
    return kind(**{**stats, **crop, "size": {"shortest_edge": SIZE}, **settings})


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def float32_weights(teacher):
    embedded = teacher.tower.load(torch.device("cpu"))(torch.zeros(1, 3, SIZE, SIZE))
    return embedded.dtype == torch.float32


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


def test_name_changes_with_the_weights(folder, copy):
    before = ClipTeacher(copy, "image").name
    assert before.split(":")[2] == ClipTeacher(folder, "image").name.split(":")[2]
    weights = copy / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-3] ^= 1
    weights.write_bytes(raw)
    assert ClipTeacher(copy, "image").name != before


def test_name_changes_with_the_preprocessing_the_frames_and_what_is_kept(folder, copy):
    processor(transformers.CLIPImageProcessorPil, resample=2).save_pretrained(copy)
    teachers = [ClipTeacher(copy, "image"), ClipTeacher(folder, "image")]
    teachers += [ClipTeacher(folder, "video", 2), ClipTeacher(folder, "video", 3)]
    teachers += [ClipTeacher(folder, "video", 2, 8)]
    names = {teacher.name.partition(":")[2].partition(":")[2] for teacher in teachers}
    assert len(names) == 5  # without the folder's name


def test_of_each_frame_the_first_numbers_are_kept(folder):
    whole, kept = ClipTeacher(folder, "video", 2), ClipTeacher(folder, "video", 2, 6)
    frames = np.stack(list(clip(2)))
    every = ClipTeacher(folder, "image").features([frame[None] for frame in frames])[:, :6]
    each = every / np.linalg.norm(every, axis=1, keepdims=True)
    assert (whole.width, kept.width) == (2 * WIDTH, 12)
    assert kept.features([frames])[0] == pytest.approx(each.ravel() / 2**0.5, abs=1e-5)
    assert ClipTeacher(folder, "image", 2, 6).width == WIDTH  # an image is kept whole


def test_more_numbers_than_a_frame_has_are_an_error_that_names_both(folder):
    config = ClusterConfig(teacher="clip", teacher_dir=str(folder), frame_dims=512)
    with pytest.raises(ConfigError, match=r"frame_dims=512: embeddings of .* are 16 wide"):
        open_teacher(config, "video")


def test_a_frame_without_direction_is_zero_and_not_nan():
    embedded = torch.zeros(2, 2, 4)
    embedded[0, 1, 0] = 3.0
    joined = join_frames(embedded, 4)
    assert joined[0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert not joined[1].any()


def test_samples_of_several_shapes_share_a_batch(folder):
    teacher = ClipTeacher(folder, "video", 2)
    samples = [clip(2), clip(2, 64, 30), clip(2)[::-1], clip(2, 64, 30)[::-1]]
    together = teacher.features(samples)
    for found, sample in zip(together, samples, strict=True):
        assert found == pytest.approx(teacher.features([sample])[0], abs=1e-5)


def test_its_name_and_width_are_known_without_a_model(folder, monkeypatch):
    monkeypatch.setattr(transformers.CLIPVisionModelWithProjection, "from_pretrained", None)
    teacher = ClipTeacher(folder, "video", 2)
    assert (teacher.width, teacher.name.endswith(":2x16")) == (2 * WIDTH, True)


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
        ClipTeacher(copy, "image").features([clip(1)])


def test_missing_tensors_are_an_error_not_random_numbers(copy):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 weights are missing, first visual_projection"):
        ClipTeacher(copy, "image").features([clip(1)])


def test_a_part_of_the_weights_that_is_missing_is_named(copy):
    weights = copy / "model.safetensors"
    weights.rename(copy / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(ConfigError, match=r"model-00002-of-00002\.safetensors: missing"):
        ClipTeacher(copy, "image")


def test_weights_in_parts_are_those_in_one_file(folder, tmp_path):
    model = transformers.CLIPModel.from_pretrained(folder)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    shutil.copy(folder / "preprocessor_config.json", tmp_path)
    found = ClipTeacher(tmp_path, "image").features([clip(1)])
    whole = ClipTeacher(folder, "image").features([clip(1)])
    assert found == pytest.approx(whole, abs=1e-6)  # memory is aligned otherwise


def test_weights_of_half_precision_are_used_in_float32_on_a_cpu(folder, tmp_path):
    tower = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
    tower.half().save_pretrained(tmp_path)
    shutil.copy(folder / "preprocessor_config.json", tmp_path)
    assert float32_weights(ClipTeacher(tmp_path, "image", device="cpu"))


def test_a_picture_size_that_is_not_the_towers_is_an_error(copy):
    size = {"shortest_edge": 42}, {"height": 42, "width": 42}
    other = processor(transformers.CLIPImageProcessorPil, size=size[0], crop_size=size[1])
    other.save_pretrained(copy)
    with pytest.raises(ConfigError, match=r"pictures become \(42, 42\), .* made for \(28, 28\)"):
        ClipTeacher(copy, "image")


@pytest.mark.parametrize("kind", ["siglip", "siglip_vision_model", "metaclip_2"])
def test_other_towers_give_the_embedding_that_transformers_gives(tmp_path, kind):
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "image_size": SIZE, "patch_size": 14}
    text = tower | {"vocab_size": 64, "max_position_embeddings": 8}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    transformers.set_seed(1)
    if kind == "siglip_vision_model":
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**tower))
    elif kind == "siglip":
        config = transformers.SiglipConfig(text_config=text, vision_config=tower)
        model = transformers.SiglipModel(config)
    else:
        config = transformers.MetaClip2Config(
            text_config=text, vision_config=tower | {"projection_dim": 16}, projection_dim=16
        )
        model = transformers.MetaClip2Model(config)
    model.eval().save_pretrained(tmp_path)
    size = {"height": SIZE, "width": SIZE}
    made = processor(transformers.SiglipImageProcessorPil, size=size, crop_size=None)
    made.save_pretrained(tmp_path)
    picture = clip(1, SIZE, SIZE)
    pixels = made(picture[0], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        if kind == "siglip_vision_model":
            wanted = model(pixels).pooler_output
        else:
            wanted = model.get_image_features(pixels).pooler_output
    found = ClipTeacher(tmp_path, "image").features([picture])
    assert found == pytest.approx((wanted / wanted.norm(dim=-1, keepdim=True)).numpy(), abs=1e-5)
