"""CLIP-style image tower as a teacher, read from a local folder (MetaCLIP-H/14 in the paper).

Video: ``frames`` uniformly sampled frames, embedded one by one and joined (``clustering.frames``),
F = frames * D. Image: one embedding of length 1, F = D. All frames of a batch go through the tower
in one call, resized on its device; bfloat16 on a GPU, float32 on a CPU. Weights are read with the
first batch.
Errors: ConfigError, see ``clustering.towers``. D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from clustering.frames import join_frames, kept_of
from clustering.teachers import Features, Frames, uniform_indices
from clustering.towers import open_tower
from ovtrain.schema.sample import Kind


class ClipTeacher:
    """Image embeddings of the model in ``folder``."""

    def __init__(
        self,
        folder: str | Path,
        kind: Kind,
        frames: int = 8,
        frame_dims: int = 0,
        device: str | None = None,
    ) -> None:
        folder = Path(folder)
        self.kind: Kind = kind
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tower = open_tower(folder)
        self.frames = frames if kind == "video" else 1
        self.keep = kept_of(frame_dims if kind == "video" else 0, self.tower.width, str(folder))
        self.width = self.frames * self.keep
        self.name = f"clip:{folder.name}:{self.tower.digest}:{self.frames}x{self.keep}"
        self.arrays: Mapping[str, npt.NDArray[Any]] = {}

    @cached_property
    def _embed(self) -> Callable[[Tensor], Tensor]:
        return self.tower.load(self.device)

    def indices(self, frames: int) -> list[int] | None:
        return uniform_indices(frames, self.frames)

    @torch.inference_mode()
    def features(self, samples: Sequence[Frames]) -> Features:
        pixels = self.tower.preprocess(samples, self.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            embedded = self._embed(pixels)
        return join_frames(embedded.unflatten(0, (len(samples), -1)), self.keep).cpu().numpy()
