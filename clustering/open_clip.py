"""An image tower that open_clip saved, as transformers' CLIP tower: MetaCLIP is given away in that
form, too.

    open_clip_config.json  open_clip_model.safetensors | open_clip_pytorch_model.bin

Weights are renamed and the fused query-key-value projection is split; nothing is computed. Plain
ViTs only: what ``vision_cfg`` says beyond ``PLAIN`` and ``USUAL`` may mean another architecture and
is refused. open_clip itself is not needed. Errors: ConfigError.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clustering.preprocess import Preprocess, of_open_clip
from clustering.teachers import read_json
from ovtrain.schema.errors import ConfigError

OPEN_CLIP_CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PLAIN = ("image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout")
USUAL: dict[str, object] = {
    **dict.fromkeys(("ls_init_value", "timm_model_name", "act_kwargs", "norm_kwargs"), None),
    **dict.fromkeys(("attentional_pool", "no_ln_pre", "final_ln_after_pool"), False),
    **{"pos_embed_type": "learnable", "pool_type": "tok", "output_tokens": False},
}
"""Other keys of a plain ViT, with what they must say."""
FIX = (
    "convert the model to a transformers folder "
    "(convert_clip_original_pytorch_to_hf.py of transformers), or copy the folder again"
)
TOWER = "visual."
NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.": "embeddings.patch_embedding.",
    "ln_pre.": "pre_layrnorm.",
    "ln_post.": "post_layernorm.",
    "transformer.resblocks.": "encoder.layers.",
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
FUSED = re.compile(r"(.*)attn\.in_proj_(weight|bias)")


def open_folder(folder: Path) -> tuple[Callable[[], nn.Module], Any, Preprocess, list[Path]]:
    """What reads the tower, its config, its preprocessing, and the files that all of it is in."""
    from transformers import CLIPVisionConfig

    path = folder / OPEN_CLIP_CONFIG
    about = read_json(path)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ConfigError(str(folder), "no weights here", allowed=", ".join(WEIGHTS), fix=FIX)
    try:
        sizes = _sizes(about["model_cfg"], str(path))
        preprocess = of_open_clip(about["preprocess_cfg"], sizes["image_size"], path)
    except (KeyError, TypeError) as error:
        raise ConfigError(str(path), f"not open_clip's description ({error})", fix=FIX) from error
    config = CLIPVisionConfig(**sizes)
    return partial(_load, weights, config), config, preprocess, [path, weights]


def _load(weights: Path, config: Any) -> nn.Module:
    from transformers import CLIPVisionModelWithProjection

    tower: Any = CLIPVisionModelWithProjection
    model: nn.Module = tower(config)
    try:
        model.load_state_dict(renamed(_read(weights)))
    except (RuntimeError, KeyError) as error:
        lines = str(error).splitlines()
        raise ConfigError(str(weights), f"another model ({lines[-1].strip()})", fix=FIX) from error
    return model


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors -> those of CLIPVisionModelWithProjection; text towers are left out."""
    made = dict[str, Tensor]()
    for name, tensor in tensors.items():
        if not name.startswith(TOWER):
            continue
        if name == f"{TOWER}proj":
            made["visual_projection.weight"] = tensor.T.contiguous()
            continue
        new = f"vision_model.{name.removeprefix(TOWER)}"
        for old, ours in NAMES.items():
            new = new.replace(f".{old}", f".{ours}")
        if fused := FUSED.fullmatch(new):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                made[f"{fused[1]}self_attn.{letter}_proj.{fused[2]}"] = part
        else:
            made[new] = tensor
    return made


def _sizes(model: dict[str, Any], where: str) -> dict[str, Any]:
    """Arguments of CLIPVisionConfig. Raises ConfigError where it is no plain ViT; KeyError."""
    vision = model["vision_cfg"]
    for key, value in vision.items():
        if key not in PLAIN and not (key in USUAL and value == USUAL[key]):
            raise ConfigError(where, f"vision_cfg.{key}={value}", allowed=", ".join(PLAIN), fix=FIX)
    width = vision["width"]
    return {
        "hidden_size": width,
        "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
        "num_hidden_layers": vision["layers"],
        "num_attention_heads": width // vision.get("head_width", 64),
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "projection_dim": model["embed_dim"],
        "hidden_act": "quick_gelu" if model.get("quick_gelu", False) else "gelu",
        "layer_norm_eps": 1e-5,
    }


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(str(path), f"does not load ({reason})", fix=FIX) from error
