"""The public OneVision-Encoder checkpoint format and its mapping to an ``Encoder``'s parameters.

A directory of ``config.json`` and ``model.safetensors``. Three tensors have another layout there:

    embeddings.patch_embedding.weight   (D, 3, p, p)  <->  embed.projection.weight (D, 3*p*p)
    ...self_attn.{q,k,v}_proj.weight    (D, D) each   <->  attention.qkv.weight, rows (H, 3, d)
    head.attention.in_proj_weight       (3D, D)       <->  pool.query (D, D), .key_value (2D, D)

D width, H heads, d head_dim, p patch side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ovtrain.config.model import PRESETS, ROPE_STYLES, ModelConfig, ModelSize
from ovtrain.schema.errors import CheckpointError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODEL_TYPE = "onevision_encoder"

TOP = {
    "embed.norm": "layernorm_pre",
    "norm": "layernorm_post",
    "pool.out": "head.attention.out_proj",
    "pool.norm": "head.norm",
    "pool.mlp.fc1": "head.mlp.fc1",
    "pool.mlp.fc2": "head.mlp.fc2",
}
"""Modules whose parameters only change their name: ours -> public."""
BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention.out": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
QKV = ("q_proj", "k_proj", "v_proj")
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
    "layer_norm_type": "layer_norm",
    "attention_dropout": 0.0,
    "use_head": True,
}
"""What an ``Encoder`` always is; a directory that says otherwise is another model."""


def public_config(config: ModelConfig) -> dict[str, Any]:
    """``config.json``. ``rope_style`` is our extra key; the public code ignores it."""
    return {
        **FIXED,
        **{key: getattr(config.size, name) for key, name in SIZE_KEYS.items()},
        "architectures": ["OneVisionEncoderModel"],
        "image_size": 448,
        "patch_size": config.patch,
        "layer_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "rope_theta": config.rope_theta,
        "rope_temporal_size": config.rope_frames,
        "rope_style": config.rope_style,
        "torch_dtype": "float32",
    }


def model_config(saved: dict[str, Any], where: str) -> ModelConfig:
    """The inverse; ``where`` names the file. Raises CheckpointError naming every key at fault."""
    faults = [
        f"{key}={saved[key]} (allowed: {value})"
        for key, value in FIXED.items()
        if saved.get(key, value) != value
    ]
    style = saved.get("rope_style", "released")
    if style not in ROPE_STYLES:
        faults.append(f"rope_style={style} (allowed: {', '.join(ROPE_STYLES)})")
    missing = [key for key in (*SIZE_KEYS, "patch_size") if not isinstance(saved.get(key), int)]
    faults += [f"{key} is missing or no whole number" for key in missing]
    if faults:
        raise CheckpointError(where, "; ".join(faults), fix="name a OneVision-Encoder directory")
    return ModelConfig(
        preset=_preset(ModelSize(**{name: saved[key] for key, name in SIZE_KEYS.items()}), where),
        patch=saved["patch_size"],
        rope_style=style,
        rope_theta=float(saved.get("rope_theta", 10000.0)),
        rope_frames=int(saved.get("rope_temporal_size", 64)),
        norm_eps=float(saved.get("layer_norm_eps", 1e-6)),
        init_std=float(saved.get("initializer_range", 0.02)),
    )


def _preset(size: ModelSize, where: str) -> str:
    for name, known in PRESETS.items():
        if known == size:
            return name
    raise CheckpointError(
        where,
        f"{size} is no known size",
        allowed=", ".join(f"{name} {known}" for name, known in PRESETS.items()),
    )


def to_public(own: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """An encoder's state dict under public names and in public layouts."""
    size, p = config.size, config.patch
    public = {
        "embeddings.patch_embedding.weight": own["embed.projection.weight"].unflatten(1, (3, p, p)),
        "head.probe": own["pool.probe"][None],
    }
    for part in ("weight", "bias"):
        rows = [own[f"pool.query.{part}"], own[f"pool.key_value.{part}"]]
        public[f"head.attention.in_proj_{part}"] = torch.cat(rows)
        for i in range(size.depth):
            fused = own[f"blocks.{i}.attention.qkv.{part}"].unflatten(0, (size.heads, 3, -1))
            for name, rows_of_one in zip(QKV, fused.unbind(1), strict=True):
                public[f"encoder.layers.{i}.self_attn.{name}.{part}"] = rows_of_one.flatten(0, 1)
    return public | {theirs: own[ours] for ours, theirs in _renamed(config).items()}


def from_public(public: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of ``to_public``; names and shapes were checked before."""
    size = config.size
    own = {
        "embed.projection.weight": public["embeddings.patch_embedding.weight"].flatten(1),
        "pool.probe": public["head.probe"][0],
    }
    for part in ("weight", "bias"):
        rows = public[f"head.attention.in_proj_{part}"]
        own[f"pool.query.{part}"] = rows[: size.width]
        own[f"pool.key_value.{part}"] = rows[size.width :]
        for i in range(size.depth):
            layer = f"encoder.layers.{i}.self_attn"
            separate = [public[f"{layer}.{n}.{part}"].unflatten(0, (size.heads, -1)) for n in QKV]
            own[f"blocks.{i}.attention.qkv.{part}"] = torch.stack(separate, 1).flatten(0, 2)
    return own | {ours: public[theirs] for ours, theirs in _renamed(config).items()}


def _renamed(config: ModelConfig) -> dict[str, str]:
    """Parameters that only change their name: ours -> public."""
    modules = dict(TOP)
    for i in range(config.size.depth):
        modules |= {f"blocks.{i}.{a}": f"encoder.layers.{i}.{b}" for a, b in BLOCK.items()}
    parts = {"pool.norm": ("weight",)}  # an RMSNorm has no bias
    return {
        f"{ours}.{part}": f"{theirs}.{part}"
        for ours, theirs in modules.items()
        for part in parts.get(ours, ("weight", "bias"))
    }
