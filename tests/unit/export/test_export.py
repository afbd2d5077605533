"""The public checkpoint format, both ways. That the numbers mean the same model as the public
architecture is ``tests/parity/test_packing.py``: its reference reads these very names and
layouts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ovtrain.config.data import DataConfig, SourceConfig
from ovtrain.config.model import ModelConfig
from ovtrain.config.train import TrainConfig
from ovtrain.export import hf, run
from ovtrain.export.load import fill_encoder, load_encoder
from ovtrain.export.model_card import Training, model_card
from ovtrain.export.public_format import from_public, model_config, public_config, to_public
from ovtrain.models.encoder import Encoder, build_encoder
from ovtrain.schema.errors import CheckpointError
from tests.helpers.training import fit, typed_config

CONFIG = ModelConfig(preset="tiny", rope_theta=500.0, init_std=0.05)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """Every parameter distinct: a swapped row or a forgotten bias shows."""
    encoder = build_encoder(CONFIG, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(generator=generator)
    return encoder


@pytest.fixture(scope="module")
def exported(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    hf.save_encoder(encoder, folder)
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def rewrite(folder: Path, **changes) -> None:
    """Change config keys; None removes one."""
    path = folder / "config.json"
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def test_the_round_trip_is_bit_identical(encoder: Encoder, exported: Path):
    loaded = load_encoder(exported)
    assert loaded.config == CONFIG
    assert list(loaded.state_dict()) == list(encoder.state_dict())
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    patches = torch.randint(0, 256, (5, 588), dtype=torch.uint8)
    call = (patches, torch.arange(15).view(5, 3), torch.tensor([0, 5], dtype=torch.int32), 5)
    for a, b in zip(encoder(*call), loaded(*call), strict=True):
        assert torch.equal(a, b)


def test_an_encoder_is_filled_with_public_weights(encoder: Encoder, exported: Path):
    other = build_encoder(replace(CONFIG, rope_frames=None), seed=9)
    fill_encoder(other, exported)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({"preset": "nano"}, "model.preset=tiny"),
        ({"rope_style": "released"}, "model.rope_style=rotary"),
        ({"rope_theta": 100.0, "norm": "rms_norm"}, "model.rope_theta=500.0 model.norm=layer_norm"),
        ({"pooling": False}, "model.pooling=true"),
        ({"patch": 16}, "model.patch=14"),
    ],
)
def test_another_encoder_is_refused_with_the_keys_to_set(exported: Path, config, keys: str):
    other = build_encoder(replace(CONFIG, **config), seed=9)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"holds another encoder .*; set {keys}, or start"):
        fill_encoder(other, exported)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_sizes_that_are_no_preset_are_named_one_by_one(tmp_path: Path):
    odd = replace(CONFIG, width=96, depth=2, heads=3, mlp=128)
    hf.save_encoder(build_encoder(odd, seed=0), tmp_path / "odd")
    wanted = "set model.width=96 model.depth=2 model.heads=3 model.mlp=128, or"
    with pytest.raises(CheckpointError, match=wanted):
        fill_encoder(build_encoder(CONFIG, seed=0), tmp_path / "odd")


def test_names_shapes_and_metadata_are_the_public_ones(exported: Path):
    tensors = load_file(str(exported / "model.safetensors"))
    assert tensors["embeddings.patch_embedding.weight"].shape == (192, 3, 14, 14)
    assert tensors["head.probe"].shape == (1, 1, 192)
    assert tensors["head.attention.in_proj_weight"].shape == (576, 192)
    assert tensors["encoder.layers.5.self_attn.k_proj.bias"].shape == (192,)
    per_layer = 4 * 2 + 2 * 2 + 2 * 2
    top = 1 + 2 + 2 + 1 + 2 + 2 + 1 + 4  # patches, pre, post, probe, in, out, norm, mlp
    assert len(tensors) == 6 * per_layer + top
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    about = json.loads((exported / "config.json").read_text())
    expected = {
        "model_type": "onevision_encoder",
        "architectures": ["OneVisionEncoderModel"],
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "patch_size": 14,
        "hidden_act": "gelu",
        "rope_theta": 500.0,
        "rope_temporal_size": 64,
        "rope_style": "rotary",
        "use_head": True,
    }
    assert {key: about[key] for key in expected} == expected


def test_fused_rows_are_split_by_head(encoder: Encoder):
    """Row (head, part, i) of the fused projection is row head * d + i of q, k or v."""
    own = dict(encoder.state_dict())
    public = to_public(own, CONFIG)
    fused = own["layers.2.self_attn.qkv.weight"]
    for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
        rows = public[f"encoder.layers.2.self_attn.{name}.weight"]
        for head in range(3):
            first = (head * 3 + part) * 64
            assert torch.equal(rows[head * 64 : head * 64 + 64], fused[first : first + 64])


def test_a_headless_encoder_with_rms_norms_is_written_and_read(tmp_path: Path):
    config = ModelConfig(width=96, depth=2, heads=3, mlp=100, norm="rms_norm", pooling=False)
    encoder = build_encoder(config, seed=0)
    hf.save_encoder(encoder, tmp_path / "model")
    loaded = load_encoder(tmp_path / "model")
    assert loaded.config == config
    call = (torch.rand(5, 588), torch.zeros(5, 3), torch.tensor([0, 5], dtype=torch.int32), 5)
    tokens, pooled = loaded(*call)
    assert torch.equal(tokens, encoder(*call)[0])
    assert pooled.shape == (1, 0)
    assert not any(
        "head" in name or ("bias" in name and "norm" in name) for name in loaded.state_dict()
    )


def test_transformers_5_may_keep_theta_elsewhere(copy: Path):
    rewrite(copy, rope_theta=None, rope_parameters={"rope_theta": 123.0})
    assert load_encoder(copy).config.rope_theta == 123.0


def test_a_card_without_a_run_says_so(exported: Path):
    card = (exported / "README.md").read_text()
    assert "Not recorded here." in card
    assert "trust_remote_code=True" in card


def test_weights_in_parts_are_read_together(encoder: Encoder, copy: Path):
    path = copy / "model.safetensors"
    tensors = load_file(str(path))
    path.unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for name, held in parts.items():
        save_file({n: tensors[n] for n in held}, str(copy / name))
    index = {"weight_map": {n: part for part, held in parts.items() for n in held}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, tensor in load_encoder(copy).state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[name]), name
    (copy / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors: unreadable"):
        load_encoder(copy)


def test_a_public_directory_is_read_as_released(copy: Path):
    rewrite(copy, rope_style=None)
    assert load_encoder(copy).config.rope_style == "released"


def test_half_precision_weights_become_float32(copy: Path):
    path = str(copy / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(halves, path)
    assert all(p.dtype == torch.float32 for p in load_encoder(copy).parameters())


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, preset="base", rope_style="released", patch=16),
        replace(CONFIG, preset="huge", rope_frames=None),
        ModelConfig(width=96, depth=2, heads=3, mlp=100, norm="rms_norm", pooling=False),
        ModelConfig(preset="tiny", window_frames=8, window_layers=(0, 1, 5)),
        ModelConfig(preset="gigantic"),
    ],
    ids=["base", "huge", "rms_norm without a head", "windows", "heads of 104"],
)
def test_configs_and_names_round_trip(config: ModelConfig):
    assert model_config(public_config(config), "x") == config
    with torch.device("meta"):
        own = dict(Encoder(config).state_dict())
    back = from_public(to_public(own, config), config)
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in own.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clip"}, r"model_type=clip \(allowed: onevision_encoder\)"),
        (
            {"layer_norm_type": "group", "hidden_act": "relu"},
            "hidden_act=relu.*layer_norm_type=group",
        ),
        ({"rope_style": "spin"}, r"rope_style=spin \(allowed: rotary, released\)"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": 200}, "model.heads=3 with model.width=200; allowed: 1, 5 "),
        ({"hidden_size": True}, "hidden_size is missing or no positive whole number"),
        ({"window_frames": 4}, "give both or neither"),
        ({"rope_theta": "a", "use_head": "false"}, "rope_theta='a' .*number.*use_head='false'"),
        ({"window_layers": ["a"]}, r"window_layers=\['a'\] \(allowed: a list of whole numbers"),
        ({"rope_temporal_size": 1.5}, r"rope_temporal_size=1.5 \(allowed: a whole number, or null"),
    ],
)
def test_another_model_is_refused_with_the_key(copy: Path, changes: dict, message: str):
    rewrite(copy, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_encoder(copy)
    assert "config.json" in str(caught.value)


def test_missing_foreign_and_misshapen_tensors_are_named(copy: Path):
    path = str(copy / "model.safetensors")
    tensors = load_file(path)
    del tensors["layernorm_post.bias"]
    tensors["head.probe"] = torch.zeros(1, 1, 7)
    tensors["lm_head.weight"] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        load_encoder(copy)
    for part in (
        "layernorm_post.bias is missing",
        "lm_head.weight is not of this model",
        "head.probe is (1, 1, 7), not (1, 1, 192)",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("data", [None, b"", b"{"])
def test_missing_and_damaged_files_are_typed_errors(copy: Path, name: str, data: bytes | None):
    (copy / name).unlink()
    if data is not None:
        (copy / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name}: unreadable"):
        load_encoder(copy)


def test_a_directory_in_the_way_is_not_touched(encoder: Encoder, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already; remove it or name another"):
        hf.save_encoder(encoder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_export_leaves_nothing(encoder: Encoder, tmp_path: Path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(hf, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        hf.save_encoder(encoder, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_command_exports_a_run(setup_folder: Path, tmp_path: Path, capsys):
    config = typed_config(setup_folder, backend="ddp", steps=1, out=str(tmp_path / "run"))
    parts = fit(config)
    to = tmp_path / "deep" / "model"
    assert run.main([str(tmp_path / "run"), "--to", str(to)]) == 0
    for name, tensor in load_encoder(to).state_dict().items():
        assert torch.equal(tensor, parts.encoder.state_dict()[name])
    card = (to / "README.md").read_text()
    for fact in (
        "| steps | 1 of 1 |",
        f"| width, layers, heads, MLP | {', '.join(map(str, vars(config.model.size).values()))} |",
        "true rotary",
        f"| global batch | {config.run.global_batch} samples |",
        "| training loss, last logged | ",
        "| video | share ",
    ):
        assert fact in card, fact
    about = json.loads((to / "preprocessor_config.json").read_text())
    assert about["crop_size"] == {"height": config.data.size, "width": config.data.size}
    assert "| picture side | 28 |" in card
    assert run.main([str(tmp_path / "run"), "--to", str(to)]) == 2
    assert run.main([str(tmp_path / "nowhere"), "--to", str(tmp_path / "x")]) == 2
    shown = capsys.readouterr().err
    assert "is there already" in shown
    assert "no checkpoint here" in shown
    assert "Traceback" not in shown


def test_the_card_names_each_sources_side(encoder: Encoder):
    data = DataConfig([SourceConfig("video"), SourceConfig("image", size=448)])
    card = model_card(encoder, Training(TrainConfig(data=data), 1, {}, None))
    assert "| picture side | video 224, image 448 |" in card
    assert data.largest_size == 448  # what the export says that pictures should have
