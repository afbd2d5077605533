"""A public checkpoint directory -> an ``Encoder``.

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
