"""CLIP-style image tower as a teacher, read from a local folder (MetaCLIP-H/14 in the paper).

Video: ``frames`` uniformly sampled frames, each embedded and L2-normalised, concatenated and
normalised again (paper section 3), F = frames * projection width. Image: one normalised embedding.
Nothing is ever downloaded. Errors: ConfigError for a missing folder, file, weight or package.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from clustering.teachers import Features, Frames, uniform_indices
from ovtrain.schema.errors import ConfigError
from ovtrain.schema.sample import Kind

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
MODEL_TYPES = ("clip", "clip_vision_model")
FIX = "save a CLIP model and its image processor there with transformers' save_pretrained"


class ClipTeacher:
    """Projected image embeddings of the CLIP model in ``folder``."""

    def __init__(
        self, folder: str | Path, kind: Kind, frames: int = 8, device: str | None = None
    ) -> None:
        self.folder = Path(folder)
        self.kind: Kind = kind
        self.frames = frames if kind == "video" else 1
        _check_folder(self.folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = _load(self.folder).to(self.device)
        settings = _read_json(self.folder / PREPROCESSOR)
        try:
            mean_std = [settings["image_mean"], settings["image_std"]]
        except KeyError as error:
            raise ConfigError(str(self.folder / PREPROCESSOR), f"no {error}", fix=FIX) from error
        stats = torch.tensor(mean_std, device=self.device).view(2, 1, 3, 1, 1)
        self.mean, self.std = stats[0], stats[1]
        self.size = int(self.model.config.image_size)

    @property
    def name(self) -> str:
        return f"clip:{self.folder.name}:{_identity(self.folder)}:{self.frames}"

    @property
    def width(self) -> int:
        return self.frames * int(self.model.config.projection_dim)

    def indices(self, frames: int) -> list[int] | None:
        return uniform_indices(frames, self.frames)

    @torch.inference_mode()
    def features(self, samples: Sequence[Frames]) -> Features:
        pixels = torch.cat([self._pixels(frames) for frames in samples])
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            embedded = self.model(pixel_values=pixels).image_embeds
        per_frame = functional.normalize(embedded.float(), dim=-1)
        joined = per_frame.reshape(len(samples), -1)
        return functional.normalize(joined, dim=-1).cpu().numpy().astype(np.float32)

    def _pixels(self, frames: Frames) -> Tensor:
        """(T, H, W, 3) uint8 -> (T, 3, size, size): short side resized, centre crop, normalised."""
        pixels = (
            torch.tensor(np.ascontiguousarray(frames), device=self.device)
            .permute(0, 3, 1, 2)
            .float()
            / 255
        )
        height, width = pixels.shape[2:]
        scale = self.size / min(height, width)
        shape = (max(self.size, round(height * scale)), max(self.size, round(width * scale)))
        pixels = functional.interpolate(pixels, shape, mode="bicubic", antialias=True)
        top, left = (shape[0] - self.size) // 2, (shape[1] - self.size) // 2
        pixels = pixels[:, :, top : top + self.size, left : left + self.size].clamp(0, 1)
        return (pixels - self.mean) / self.std


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"teacher_dir={folder}", "no such folder", fix=FIX)
    for name in (CONFIG, PREPROCESSOR):
        if not (folder / name).is_file():
            raise ConfigError(str(folder / name), "missing", fix=FIX)
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ConfigError(str(folder), "no weights here", allowed=", ".join(WEIGHTS), fix=FIX)
    found = _read_json(folder / CONFIG).get("model_type")
    if found not in MODEL_TYPES:
        raise ConfigError(
            str(folder / CONFIG), f"model_type={found}", allowed=", ".join(MODEL_TYPES)
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), f"unreadable ({error})", fix=FIX) from error


def _load(folder: Path) -> Any:
    """The vision tower in eval mode; weights that are absent are an error, not random numbers."""
    try:
        from transformers import CLIPVisionModelWithProjection, logging
    except ImportError as error:
        raise ConfigError(
            "teacher=clip", "transformers is not installed", fix="pip install ovtrain[hf]"
        ) from error
    logging.set_verbosity_error()  # it lists every weight of the text tower as unexpected
    tower: Any = CLIPVisionModelWithProjection
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
    return model.eval()


def _identity(folder: Path) -> str:
    """Short digest of the config and of each weight file's size and first MiB."""
    digest = sha256((folder / CONFIG).read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with open(path, "rb") as handle:
            digest.update(handle.read(1 << 20))
        digest.update(str(path.stat().st_size).encode())
    return digest.hexdigest()[:8]
