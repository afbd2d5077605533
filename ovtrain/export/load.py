"""A public checkpoint directory -> an ``Encoder``, or the weights of one that is there.

``config.json`` and ``model.safetensors``, or the parts that ``model.safetensors.index.json`` names.
Weights of any float type become float32. Raises CheckpointError.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ovtrain.config.model import PRESETS, ModelConfig
from ovtrain.export.public_format import (
    CONFIG,
    WEIGHTS,
    WEIGHTS_INDEX,
    from_public,
    model_config,
    to_public,
)
from ovtrain.models.encoder import Encoder
from ovtrain.schema.errors import CheckpointError

MEANING = ("patch", "rope_style", "rope_theta", "norm", "norm_eps", "pooling")
"""What weights mean beside the sizes. Windows and the virtual grid are how an encoder is used."""


def is_public(folder: Path | str) -> bool:
    """Whether it is a public checkpoint directory; runs have no such file."""
    return (Path(folder) / CONFIG).is_file()


def fill_encoder(encoder: Encoder, folder: Path | str) -> None:
    """Copy the weights of ``folder`` into an encoder. Raises CheckpointError that names the keys of
    ``model`` to set where the folder holds an encoder of other sizes, rotation or norms."""
    folder = Path(folder)
    config = model_config(_read_object(folder / CONFIG), str(folder / CONFIG))
    check_meaning(config, encoder.config, str(folder))
    encoder.load_state_dict(load_encoder(folder).state_dict())


def check_meaning(config: ModelConfig, own: ModelConfig, where: str) -> None:
    """Raises CheckpointError where weights of ``config`` would mean something else to ``own``."""
    if other := _differences(config, own):
        raise CheckpointError(
            where,
            f"holds another encoder ({', '.join(other)} there)",
            fix=f"set {' '.join(other)}, or start from another",
        )


def _differences(config: ModelConfig, own: ModelConfig) -> list[str]:
    """``key=value`` of ``config`` where its weights would mean something else to ``own``."""
    found = list[str]()
    if config.size != own.size:
        preset = next((name for name, size in PRESETS.items() if size == config.size), "")
        sizes = {"preset": preset} if preset else vars(config.size)
        found += [f"model.{key}={value}" for key, value in sizes.items()]
    for key in MEANING:
        if getattr(config, key) != getattr(own, key):
            found.append(f"model.{key}={str(getattr(config, key)).lower()}")
    return found


def load_encoder(folder: Path | str) -> Encoder:
    """The encoder of ``folder``, on the CPU, in float32."""
    folder = Path(folder)
    saved = _read_object(folder / CONFIG)
    config = model_config(saved, str(folder / CONFIG))
    with torch.device("meta"):
        encoder = Encoder(config)
    tensors = _read_weights(folder)
    _check(tensors, encoder, folder / WEIGHTS)
    encoder = encoder.to_empty(device="cpu")  # aligned memory: sums are those of any other encoder
    encoder.load_state_dict(from_public(tensors, config))  # copies, and converts to float32
    encoder.image_size = int(saved.get("image_size", encoder.image_size))
    return encoder


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            str(path), f"unreadable ({error})", fix="name a public checkpoint directory"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            str(path), "not a JSON object", fix="name a public checkpoint directory"
        )
    return value


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """One file, or all that the index names."""
    index = folder / WEIGHTS_INDEX
    if (folder / WEIGHTS).exists() or not index.exists():
        return _read_tensors(folder / WEIGHTS)
    parts = _read_object(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise CheckpointError(str(index), "has no weight_map", fix="copy the directory again")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(parts.values())):
        tensors |= _read_tensors(folder / str(name))
    return tensors


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            str(path), f"unreadable ({error})", fix="copy the directory again"
        ) from error


def _check(tensors: dict[str, Tensor], encoder: Encoder, path: Path) -> None:
    """Every public name there, of its shape, and no other."""
    wanted = _shapes(encoder)
    faults = [f"{name} is missing" for name in wanted if name not in tensors]
    faults += [f"{name} is not of this model" for name in tensors if name not in wanted]
    for name, shape in wanted.items():
        if name in tensors and tensors[name].shape != shape:
            faults.append(f"{name} is {tuple(tensors[name].shape)}, not {tuple(shape)}")
    if faults:
        shown = "; ".join(faults[:5]) + (f"; {len(faults) - 5} more" if faults[5:] else "")
        raise CheckpointError(
            str(path), shown, fix=f"{CONFIG} and {WEIGHTS} must come from the same model"
        )


def _shapes(encoder: Encoder) -> dict[str, torch.Size]:
    """Public names and shapes that this (meta) encoder wants."""
    public = to_public(dict(encoder.state_dict()), encoder.config)
    return {name: tensor.shape for name, tensor in public.items()}
