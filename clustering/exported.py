"""An encoder of ours as a teacher: a folder that ``ovtrain export`` wrote, or the public release's.

Video: ``frames`` uniformly sampled frames in one pass, each whole and at its place (t, h, w), so
that the encoder's own attention joins them: the frames view of training and evaluation. Image: the
picture at t = 0. Sides are those of ``ovtrain.inference``: the encoder's own for pictures, at most
224 for frames. F = D, of length 1; bfloat16 on a GPU, float32 on a CPU.
Weights are read with the first batch. Errors: ConfigError for settings that do not fit,
CheckpointError for weights.
B samples, T frames, N tokens, p patch side, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from clustering.preprocess import Preprocess
from clustering.teachers import Features, Frames, files_digest, read_json, uniform_indices
from ovtrain.config.model import ModelConfig
from ovtrain.export import load_encoder
from ovtrain.export.public_format import CONFIG, model_config
from ovtrain.inference import FRAME_SIDE, IMAGE_SIDE, VIRTUAL_FRAMES
from ovtrain.models.encoder import Encoder
from ovtrain.schema.errors import ConfigError
from ovtrain.schema.sample import Kind


class ExportTeacher:
    """Pooled embeddings of the encoder in ``folder``."""

    def __init__(
        self, folder: str | Path, kind: Kind, frames: int = 8, device: str | None = None
    ) -> None:
        folder = Path(folder)
        self.kind: Kind = kind
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.folder, about = folder, read_json(folder / CONFIG)
        config = model_config(about, str(folder / CONFIG))
        self.frames, self.width = frames if kind == "video" else 1, config.size.width
        virtual = config.rope_frames or VIRTUAL_FRAMES
        self._check(config, virtual)
        own = int(about.get("image_size", IMAGE_SIDE))  # as ``load_encoder`` reads it
        side = own if kind != "video" else min(own, FRAME_SIDE)
        self.patch = config.patch
        self.side = side // self.patch
        """Patches along it."""
        side = self.side * self.patch
        self.preprocess = Preprocess(side, (side, side), "bicubic", 1.0, (0.0,) * 3, (1.0,) * 3)
        self.places = uniform_indices(virtual, self.frames) if kind == "video" else [0]
        digest = files_digest([folder / CONFIG, *sorted(folder.glob("*.safetensors"))])
        self.name = f"ovtrain:{folder.name}:{digest}:{self.frames}x{side}px"
        self.arrays: Mapping[str, npt.NDArray[Any]] = {}

    def _check(self, config: ModelConfig, virtual: int) -> None:
        if not config.pooling:
            found = "an encoder without pooling: it has no embedding of a whole sample"
            fix = "export one with model.pooling"
            raise ConfigError(f"teacher_dir={self.folder}", found, fix=fix)
        if self.frames > virtual:
            raise ConfigError(f"frames={self.frames}", allowed=f"1 to {virtual} of {self.folder}")

    @cached_property
    def encoder(self) -> Encoder:
        return load_encoder(self.folder).eval().to(self.device)

    def indices(self, frames: int) -> list[int] | None:
        return uniform_indices(frames, self.frames)

    @torch.inference_mode()
    def features(self, samples: Sequence[Frames]) -> Features:
        pixels = self.preprocess(samples, self.device)
        patches = to_patches(pixels.to(torch.uint8), self.patch)
        tokens = self.frames * self.side**2
        bounds = torch.arange(len(samples) + 1, dtype=torch.int32) * tokens
        positions = grid_positions(self.places, self.side).repeat(len(samples), 1)
        given = (x.to(self.device) for x in (patches, positions, bounds))
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            _, pooled = self.encoder(*given, tokens)
        return functional.normalize(pooled.float(), dim=-1).cpu().numpy()


def to_patches(pixels: Tensor, patch: int) -> Tensor:
    """(T, 3, h, w) -> (T * h/p * w/p, 3*p*p), channel-major."""
    tiles = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (T, 3, h/p, p, w/p, p)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * patch**2)


def grid_positions(places: Sequence[int], side: int) -> Tensor:
    """(T * side * side, 3): (t, h, w) of whole frames that stand at t = ``places``."""
    t, h, w = torch.tensor(places), torch.arange(side), torch.arange(side)
    return torch.cartesian_prod(t, h, w)
