"""CLIP-style image towers from a local folder. Nothing is ever downloaded.

A folder as transformers saves one:

    config.json  preprocessor_config.json  model.safetensors (or its parts, or pytorch_model.bin)

of ``model_type`` clip (OpenAI's, MetaCLIP's), metaclip_2 or siglip, with or without the text tower;
or a folder as open_clip saves one (``clustering.open_clip``). Errors: ConfigError for a missing
folder, file, weight or package. N pictures, h x w pixels, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from clustering.open_clip import OPEN_CLIP_CONFIG, open_folder
from clustering.preprocess import Preprocess, of_transformers
from clustering.teachers import files_digest, read_json
from ovtrain.schema.errors import ConfigError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
Kind = tuple[str, str, str]
CLIP: Kind = ("CLIPVisionModelWithProjection", "image_embeds", "projection_dim")
META_CLIP_2: Kind = ("MetaClip2VisionModelWithProjection", "image_embeds", "projection_dim")
SIGLIP: Kind = ("SiglipVisionModel", "pooler_output", "hidden_size")
KINDS = {
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "metaclip_2": META_CLIP_2,
    "metaclip_2_vision_model": META_CLIP_2,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
}
"""model_type -> the tower's class in transformers, which of its outputs is compared with text
(after CLIP's projection, or SigLIP's pooling head), and the config key that says its width."""
FIX = "save a CLIP model and its image processor there with transformers' save_pretrained"


@dataclass(frozen=True)
class Tower:
    """``digest`` tells its weights, sizes and preprocessing from those of others. ``read`` reads
    the weights: to know of a store whether it is this tower's takes no model."""

    read: Callable[[], nn.Module]
    output: str
    width: int
    preprocess: Preprocess
    digest: str

    def load(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """(N, 3, h, w) -> (N, D), in evaluation. Raises ConfigError."""
        model = self.read().float().eval().to(device)
        return lambda pixels: model(pixel_values=pixels)[self.output]


def open_tower(folder: Path) -> Tower:
    """The tower of ``folder``, whose weights are yet to be read."""
    if not folder.is_dir():
        raise ConfigError(f"teacher_dir={folder}", "no such folder", fix=FIX)
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "teacher=clip", "transformers is not installed", fix="pip install ovtrain[hf]"
        ) from error
    transformers.logging.set_verbosity_error()  # it lists a text tower's weights as unexpected
    transformers.logging.disable_progress_bar()
    if (folder / OPEN_CLIP_CONFIG).is_file() and not (folder / CONFIG).is_file():
        read, config, preprocess, files = open_folder(folder)
        return _tower(folder, read, CLIP, config, preprocess, files)
    return _open_transformers(folder, transformers)


def _tower(
    folder: Path,
    read: Callable[[], nn.Module],
    kind: Kind,
    config: Any,
    preprocess: Preprocess,
    files: Sequence[Path],
) -> Tower:
    _, output, width = kind
    side = int(config.image_size)
    if preprocess.shape != (side, side):
        found = f"pictures become {preprocess.shape}, the tower is made for {(side, side)}"
        raise ConfigError(str(folder), found, fix=FIX)
    return Tower(read, output, int(getattr(config, width)), preprocess, files_digest(files))


def _open_transformers(folder: Path, transformers: Any) -> Tower:
    settings = [read_json(folder / name) for name in (CONFIG, PREPROCESSOR)]
    kind = KINDS.get(settings[0].get("model_type", ""))
    if kind is None:
        found = f"model_type={settings[0].get('model_type')}"
        raise ConfigError(str(folder / CONFIG), found, allowed=", ".join(KINDS))
    weights = _weights(folder)
    tower = getattr(transformers, kind[0], None)
    if tower is None:
        raise ConfigError(
            str(folder / CONFIG),
            f"transformers {transformers.__version__} has no {kind[0]}",
            fix="pip install -U transformers",
        )
    try:
        config = tower.config_class.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(str(folder / CONFIG), f"does not load ({error})", fix=FIX) from error
    preprocess = of_transformers(settings[1], folder / PREPROCESSOR)
    files = [folder / CONFIG, folder / PREPROCESSOR, *weights]
    return _tower(folder, partial(_load, folder, tower), kind, config, preprocess, files)


def _load(folder: Path, tower: Any) -> nn.Module:
    """Weights that are absent are an error, not random numbers."""
    try:
        model, info = tower.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(str(folder), f"does not load ({reason})", fix=FIX) from error
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            str(folder), f"{len(missing)} weights are missing, first {missing[0]}", fix=FIX
        )
    return model


def _weights(folder: Path) -> list[Path]:
    """The files that transformers reads: the first of its kinds that is there."""
    for name in WEIGHTS:
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return [path]
        parts = set(read_json(path).get("weight_map", {}).values())
        if absent := sorted(part for part in parts if not (folder / part).is_file()):
            raise ConfigError(str(folder / absent[0]), "missing", fix="copy the folder again")
        return [folder / part for part in sorted(parts)]
    raise ConfigError(str(folder), "no weights here", allowed=", ".join(WEIGHTS), fix=FIX)
