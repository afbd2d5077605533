"""Encoder section. Sizes are the public release's, plus three that train on a laptop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    width: int
    depth: int
    heads: int
    mlp: int


PRESETS: dict[str, ModelSize] = {
    "nano": ModelSize(192, 3, 6, 768),
    "tiny": ModelSize(192, 6, 3, 768),
    "small": ModelSize(384, 12, 6, 1536),
    "base": ModelSize(768, 12, 12, 3072),
    "large": ModelSize(1024, 24, 16, 4096),
    "huge": ModelSize(1280, 32, 20, 5120),
}
ROPE_STYLES = ("rotary", "released")
ATTENTION_BACKENDS = ("auto", "sdpa", "varlen", "flash")


@dataclass(frozen=True)
class ModelConfig:
    """``attention``: auto takes the fastest backend that runs on the device. ``init_std``: of
    linear maps; the public 0.02 suits widths from 768 on, narrow encoders learn sooner from
    0.05."""

    preset: str = "large"
    patch: int = 14
    rope_style: str = "rotary"
    rope_theta: float = 10000.0
    rope_frames: int = 64
    norm_eps: float = 1e-6
    init_std: float = 0.02
    attention: str = "auto"

    @property
    def size(self) -> ModelSize:
        return PRESETS[self.preset]

    def problems(self) -> list[str]:
        found: list[str] = []
        for key, value, allowed in (
            ("preset", self.preset, tuple(PRESETS)),
            ("rope_style", self.rope_style, ROPE_STYLES),
            ("attention", self.attention, ATTENTION_BACKENDS),
        ):
            if value not in allowed:
                found.append(f"model.{key}={value}; allowed: {', '.join(allowed)}")
        if self.init_std <= 0:
            found.append(f"model.init_std={self.init_std}; allowed: above 0")
        if self.patch <= 0:
            found.append(f"model.patch={self.patch}; allowed: a positive number of pixels")
        return found
