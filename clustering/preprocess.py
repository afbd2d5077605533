"""Decoded pictures -> what an image tower was trained on, on the tower's device.

    resize (short side, or both) -> centre crop -> x * scale -> (x - mean) / std

as the processor saved beside the weights says: ``preprocessor_config.json`` of transformers, or
``preprocess_cfg`` of open_clip. Widths are resized first, then heights, and each time pixels become
whole levels, as in Pillow: the two differ by a level at few places. (Releases of Pillow that take
the heights of tall pictures first come out 0.3 levels away in noise.) T pictures, H x W pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from clustering.teachers import Frames
from ovtrain.schema.errors import ConfigError

MODES = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, in ``resample``."""
MOST_PIXELS = 1 << 25
"""That are resized at once: as floats 400 MB."""
FIX = "save the model's image processor there with transformers' save_pretrained"


@dataclass(frozen=True)
class Preprocess:
    """``resize``: the short side, (height, width), or None; ``crop``: (height, width), or None;
    ``scale``: of levels 0 to 255, before mean and std."""

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mode: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int] | None:
        """(height, width) of what is made; None where that follows the picture."""
        if self.crop is not None:
            return self.crop
        return self.resize if isinstance(self.resize, tuple) else None

    def __call__(self, samples: Sequence[Frames], device: torch.device) -> Tensor:
        """Arrays (T, H, W, 3) uint8 RGB -> (sum of T, 3, h, w) float32, in their order."""
        groups = defaultdict[tuple[int, ...], list[int]](list)
        for number, sample in enumerate(samples):
            groups[sample.shape].append(number)
        made = dict[int, Tensor]()
        for (_, height, width, _), members in groups.items():
            most = max(1, MOST_PIXELS // (height * width * samples[members[0]].shape[0]))
            for start in range(0, len(members), most):
                together = members[start : start + most]
                levels = np.stack([samples[number] for number in together])
                pixels = self._pixels(torch.from_numpy(levels).to(device).flatten(0, 1))
                made.update(zip(together, pixels.chunk(len(together)), strict=True))
        return torch.cat([made[number] for number in range(len(samples))])

    def _pixels(self, levels: Tensor) -> Tensor:
        """(T, H, W, 3) uint8 -> (T, 3, h, w) float32."""
        pixels = levels.permute(0, 3, 1, 2).float()
        height, width = pixels.shape[2:]
        shape = self._resized(height, width)
        for side in ((height, shape[1]), shape):
            if pixels.shape[2:] != side:
                pixels = functional.interpolate(pixels, side, mode=self.mode, antialias=True)
                pixels = pixels.add_(0.5).floor_().clamp_(0, 255)
        if self.crop is not None:
            top, left = ((a - b) // 2 for a, b in zip(shape, self.crop, strict=True))
            pixels = pixels[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (torch.tensor(x, device=levels.device).view(3, 1, 1) for x in self._stats)
        return (pixels * self.scale - mean) / std

    @property
    def _stats(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.mean, self.std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.resize, int):  # the long side is cut to a whole number, not rounded
            short = min(height, width)
            return self.resize * height // short, self.resize * width // short
        return self.resize or (height, width)


def of_transformers(settings: Mapping[str, Any], path: Path) -> Preprocess:
    """Of a ``preprocessor_config.json``; what it leaves out is on, as in transformers. Raises
    ConfigError."""
    where = str(path)
    resize = crop = None
    if settings.get("do_resize", True):
        resize = _resize(_needed(settings, "size", where), where)
    if settings.get("do_center_crop", "crop_size" in settings):
        crop = _pair(_needed(settings, "crop_size", where), "crop_size", where)
    mode = _mode(_needed(settings, "resample", where), where) if resize else MODES[3]
    scale, mean, std = 1.0, (0.0,) * 3, (1.0,) * 3
    if settings.get("do_rescale", True):
        scale = float(settings.get("rescale_factor", 1 / 255))
    if settings.get("do_normalize", True):
        mean = _three(_needed(settings, "image_mean", where), where)
        std = _three(_needed(settings, "image_std", where), where)
    return _checked(Preprocess(resize, crop, mode, scale, mean, std), where)


def of_open_clip(settings: Mapping[str, Any], side: int, path: Path) -> Preprocess:
    """Of ``preprocess_cfg`` in an ``open_clip_config.json``. Raises ConfigError."""
    where = f"{path}: preprocess_cfg"
    modes = {"bicubic": 3, "bilinear": 2}
    kinds: dict[str, tuple[int | tuple[int, int], tuple[int, int] | None]] = {
        "shortest": (side, (side, side)),
        "squash": ((side, side), None),
    }
    kind = settings.get("resize_mode", "shortest")
    if kind not in kinds:
        raise ConfigError(where, f"resize_mode={kind}", allowed=", ".join(kinds))
    resize, crop = kinds[kind]
    mode = _mode(modes.get(settings.get("interpolation", "bicubic")), where)
    mean = _three(_needed(settings, "mean", where), where)
    return Preprocess(
        resize, crop, mode, 1 / 255, mean, _three(_needed(settings, "std", where), where)
    )


def _needed(settings: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in settings:
        raise ConfigError(where, f"no {key!r}", fix=FIX)
    return settings[key]


def _mode(found: object, where: str) -> str:
    for number, mode in MODES.items():
        if found == number:
            return mode
    allowed = ", ".join(f"{number} ({mode})" for number, mode in MODES.items())
    raise ConfigError(where, f"resample={found}", allowed=allowed, fix=FIX)


def _resize(size: Any, where: str) -> int | tuple[int, int]:
    """``224``, ``{"shortest_edge": 224}`` or ``{"height": 224, "width": 224}``."""
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        size = size["shortest_edge"]
    if isinstance(size, int):
        return _side(size, "size", where)
    return _pair(size, "size", where)


def _pair(size: Any, key: str, where: str) -> tuple[int, int]:
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if not isinstance(size, Mapping) or set(size) != {"height", "width"}:
        allowed = 'a side, or {"height", "width"}'
        raise ConfigError(where, f"{key}={size}", allowed=allowed, fix=FIX)
    return _side(size["height"], key, where), _side(size["width"], key, where)


def _side(value: Any, key: str, where: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(where, f"{key}={value}", allowed="pixels", fix=FIX)
    return value


def _three(values: Any, where: str) -> tuple[float, ...]:
    try:
        found = tuple(map(float, values))
    except (TypeError, ValueError):
        found = ()
    if len(found) != 3:
        raise ConfigError(where, f"mean or std {values}", allowed="three numbers", fix=FIX)
    return found


def _checked(made: Preprocess, where: str) -> Preprocess:
    """A crop must lie inside every resized picture."""
    if made.crop is not None and made.resize is not None:
        height, width = made.resize if isinstance(made.resize, tuple) else (made.resize,) * 2
        if made.crop[0] > height or made.crop[1] > width:
            found = f"a crop of {made.crop} out of pictures resized to {made.resize}"
            raise ConfigError(where, found, fix=FIX)
    if made.shape is None or made.resize is None:
        raise ConfigError(where, "pictures keep their own sizes", allowed="one size", fix=FIX)
    return made
