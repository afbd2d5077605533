"""The public OneVision-Encoder checkpoint format and its mapping to an ``Encoder``'s parameters.

A directory of ``config.json`` and ``model.safetensors``. Names are the encoder's own, but for
``layers``, which is ``encoder.layers`` there; one tensor per block has another layout:

    ...self_attn.{q,k,v}_proj.weight (D, D) each  <->  self_attn.qkv.weight (3D, D), rows (H, 3, d)

and so have their biases. D width, H heads, d head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ovtrain.config.model import NORMS, PRESETS, ROPE_STYLES, ModelConfig, ModelSize
from ovtrain.schema.errors import CheckpointError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
MODEL_TYPE = "onevision_encoder"
MODEL_CODE, CONFIG_CODE = "modeling_onevision_encoder", "configuration_onevision_encoder"

QKV = ("q_proj", "k_proj", "v_proj")
FUSED = ".self_attn.qkv."
SIZE_KEYS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp",
}
FIXED = {
    "model_type": MODEL_TYPE,
    "num_channels": 3,
    "hidden_act": "gelu",
    "attention_dropout": 0.0,
}
"""What an ``Encoder`` always is; a directory that says otherwise is another model."""


FRAMES = "rope_temporal_size"
OPTIONAL: dict[str, tuple[Any, str]] = {
    FRAMES: (64, "a whole number, or null"),
    "rope_theta": (10000.0, "a number"),
    "layer_norm_eps": (1e-6, "a number"),
    "initializer_range": (0.02, "a number"),
    "use_head": (True, "true or false"),
    "window_frames": (0, "a whole number"),
    "window_layers": ([], "a list of whole numbers"),
    "image_size": (448, "a whole number"),
}
"""Key -> the public code's default (0 windows for ours), and what may stand there."""


def public_config(config: ModelConfig, image_size: int = 448) -> dict[str, Any]:
    """``config.json``. ``rope_style``, ``window_frames`` and ``window_layers`` are our keys; the
    public code ignores them."""
    return {
        **FIXED,
        **{key: getattr(config.size, name) for key, name in SIZE_KEYS.items()},
        "architectures": ["OneVisionEncoderModel"],
        "auto_map": {
            "AutoConfig": f"{CONFIG_CODE}.OneVisionEncoderConfig",
            "AutoModel": f"{MODEL_CODE}.OneVisionEncoderModel",
        },
        "image_size": image_size,
        "patch_size": config.patch,
        "layer_norm_type": config.norm,
        "layer_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "rope_theta": config.rope_theta,
        "rope_temporal_size": config.rope_frames,
        "rope_style": config.rope_style,
        "use_head": config.pooling,
        "window_frames": config.window_frames,
        "window_layers": list(config.window_layers),
        "torch_dtype": "float32",
    }


def model_config(saved: dict[str, Any], where: str) -> ModelConfig:
    """The inverse; ``where`` names the file. Raises CheckpointError naming every key at fault.

    Sizes and ``patch_size`` must be there; other keys that are absent have the public code's
    defaults. Without ``rope_style`` it is ``released``, which the public release's weights need."""
    faults = [
        f"{key}={saved[key]} (allowed: {value})"
        for key, value in FIXED.items()
        if saved.get(key, value) != value
    ]
    style = saved.get("rope_style", "released")
    if style not in ROPE_STYLES:
        faults.append(f"rope_style={style} (allowed: {', '.join(ROPE_STYLES)})")
    norm = saved.get("layer_norm_type", "layer_norm")
    if norm not in NORMS:
        faults.append(f"layer_norm_type={norm} (allowed: {', '.join(NORMS)})")
    missing = [key for key in (*SIZE_KEYS, "patch_size") if not _is_count(saved.get(key))]
    faults += [f"{key} is missing or no positive whole number" for key in missing]
    values = {key: saved.get(key, default) for key, (default, _) in OPTIONAL.items()}
    if "rope_theta" not in saved and isinstance(saved.get("rope_parameters"), dict):
        values["rope_theta"] = saved["rope_parameters"].get("rope_theta", values["rope_theta"])
    faults += [
        f"{key}={values[key]!r} (allowed: {allowed})"
        for key, (default, allowed) in OPTIONAL.items()
        if not _is_like(values[key], default) and not (key == FRAMES and values[key] is None)
    ]
    if faults:
        raise CheckpointError(where, "; ".join(faults), fix="name a OneVision-Encoder directory")
    config = ModelConfig(
        **_size(ModelSize(**{name: saved[key] for key, name in SIZE_KEYS.items()})),
        patch=saved["patch_size"],
        rope_style=style,
        rope_theta=float(values["rope_theta"]),
        rope_frames=values[FRAMES],
        norm=norm,
        norm_eps=float(values["layer_norm_eps"]),
        init_std=float(values["initializer_range"]),
        pooling=values["use_head"],
        window_frames=values["window_frames"],
        window_layers=tuple(values["window_layers"]),
    )
    if found := config.problems():
        raise CheckpointError(where, "; ".join(found), fix="name a OneVision-Encoder directory")
    return config


def _is_like(value: object, default: object) -> bool:
    """Of the default's type; a whole number is a number, too."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, list):
        return isinstance(value, list) and all(type(entry) is int for entry in value)
    return isinstance(value, (int, float) if isinstance(default, float) else int)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _size(size: ModelSize) -> dict[str, Any]:
    """A preset's name, or what replaces the default one's sizes."""
    for name, known in PRESETS.items():
        if known == size:
            return {"preset": name}
    return vars(size)


def to_public(own: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """An encoder's state dict under public names and in public layouts."""
    public: dict[str, Tensor] = {}
    for name, tensor in own.items():
        theirs = f"encoder.{name}" if name.startswith("layers.") else name
        if FUSED not in name:
            public[theirs] = tensor
            continue
        rows = tensor.unflatten(0, (config.size.heads, 3, -1)).unbind(1)
        for part, of_part in zip(QKV, rows, strict=True):
            public[theirs.replace(".qkv.", f".{part}.")] = of_part.flatten(0, 1)
    return public


def from_public(public: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of ``to_public``; names and shapes were checked before."""
    own: dict[str, Tensor] = {}
    first = f".{QKV[0]}."
    for name, tensor in public.items():
        ours = name.removeprefix("encoder.")
        if first in name:
            parts = [public[name.replace(first, f".{part}.")] for part in QKV]
            split = [part.unflatten(0, (config.size.heads, -1)) for part in parts]
            own[ours.replace(first, ".qkv.")] = torch.stack(split, 1).flatten(0, 2)
        elif not any(f".self_attn.{part}." in name for part in QKV):
            own[ours] = tensor
    return own
