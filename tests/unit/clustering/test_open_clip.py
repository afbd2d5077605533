import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from clustering.clip import ClipTeacher
from ovtrain.schema.errors import ConfigError

pytest.importorskip("transformers")

WIDTH, LAYERS, HEADS, PATCH, SIDE, EMBED = 32, 2, 2, 14, 28, 16
VISION = {
    "image_size": SIDE,
    "layers": LAYERS,
    "width": WIDTH,
    "head_width": WIDTH // HEADS,
    "patch_size": PATCH,
}
PIXELS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3], "interpolation": "bicubic"}


class Tower(nn.Module):
    """open_clip's plain ViT, names and mathematics, written anew."""

    def __init__(self):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.proj = nn.Parameter(torch.randn(WIDTH, EMBED) / WIDTH**0.5)
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        block = {
            "ln_1": nn.LayerNorm(WIDTH),
            "attn": nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
            "ln_2": nn.LayerNorm(WIDTH),
        }
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList()
        for _ in range(LAYERS):
            made = nn.ModuleDict({name: type(m)(*ARGUMENTS[name]) for name, m in block.items()})
            made["mlp"] = nn.ModuleDict(
                {"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)}
            )
            self.transformer.resblocks.append(made)

    def forward(self, pixels, quick):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer.resblocks:
            y = block["ln_1"](x)
            q, k, v = (y @ block["attn"].in_proj_weight.T + block["attn"].in_proj_bias).chunk(3, -1)
            q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
            mixed = functional.scaled_dot_product_attention(q, k, v)
            x = x + block["attn"].out_proj(mixed.transpose(1, 2).flatten(2))
            y = block["mlp"]["c_fc"](block["ln_2"](x))
            y = y * torch.sigmoid(1.702 * y) if quick else functional.gelu(y)
            x = x + block["mlp"]["c_proj"](y)
        return self.ln_post(x[:, 0]) @ self.proj


ARGUMENTS = {"ln_1": (WIDTH,), "attn": (WIDTH, HEADS), "ln_2": (WIDTH,)}


def save(folder, tower, *, model=None, vision=None, half=False, binary=False):
    tensors = {f"visual.{name}": tensor.clone() for name, tensor in tower.state_dict().items()}
    tensors |= {"logit_scale": torch.ones(()), "token_embedding.weight": torch.ones(3, 4)}
    tensors |= {"transformer.resblocks.0.ln_1.weight": torch.ones(4)}  # of the text tower
    if half:
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
    folder.mkdir(exist_ok=True)
    about = {"embed_dim": EMBED, "vision_cfg": VISION | (vision or {}), **(model or {})}
    config = {"model_cfg": about, "preprocess_cfg": PIXELS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if binary:
        torch.save(tensors, folder / "open_clip_pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return Tower().eval()


def picture():
    return np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_the_embedding_is_that_of_open_clips_own_mathematics(tower, tmp_path, quick, binary):
    save(tmp_path, tower, model={"quick_gelu": quick}, binary=binary)
    pixels = torch.from_numpy(picture()).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(PIXELS[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        wanted = functional.normalize(tower((pixels - mean) / std, quick), dim=-1).numpy()
        other = functional.normalize(tower((pixels - mean) / std, not quick), dim=-1).numpy()
    found = ClipTeacher(tmp_path, "image").features([picture()])
    assert found == pytest.approx(wanted, abs=1e-5)
    assert np.abs(other - wanted).max() > 1e-3


def test_half_precision_becomes_float32(tower, tmp_path):
    teacher = ClipTeacher(save(tmp_path, tower, half=True), "image", device="cpu")
    embedded = teacher.tower.load(torch.device("cpu"))(torch.zeros(1, 3, SIDE, SIDE))
    assert embedded.dtype == torch.float32


def test_keys_that_say_what_a_plain_tower_is_are_fine(tower, tmp_path):
    usual = {"pool_type": "tok", "no_ln_pre": False, "timm_model_name": None, "mlp_ratio": 4.0}
    found = ClipTeacher(save(tmp_path / "a", tower, vision=usual), "image").features([picture()])
    plain = ClipTeacher(save(tmp_path / "b", tower), "image").features([picture()])
    assert (found == plain).all()


@pytest.mark.parametrize("key", ["timm_model_name", "attentional_pool", "no_ln_pre", "qk_norm"])
def test_another_architecture_is_refused_by_name(tower, tmp_path, key):
    save(tmp_path, tower, vision={key: "x"})
    with pytest.raises(ConfigError, match=rf"vision_cfg\.{key}=x; allowed: .*; convert the model"):
        ClipTeacher(tmp_path, "image")


def test_tensors_that_are_missing_are_named(tower, tmp_path):
    save(tmp_path, tower, vision={"layers": LAYERS + 1})
    with pytest.raises(ConfigError, match=r"open_clip_model\.safetensors: another model"):
        ClipTeacher(tmp_path, "image").features([picture()])


def test_weights_that_are_not_there_are_an_error(tower, tmp_path):
    (save(tmp_path, tower) / "open_clip_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weights here; allowed: open_clip_model"):
        ClipTeacher(tmp_path, "image")
