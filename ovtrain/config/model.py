"""Encoder section. Sizes are the public release's, plus three that train on a laptop."""

from __future__ import annotations

from dataclasses import dataclass

from ovtrain.config.rules import POSITIVE, broken, not_among


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
        choices = {
            "preset": PRESETS,
            "rope_style": ROPE_STYLES,
            "attention": ATTENTION_BACKENDS,
        }
        rules = {POSITIVE: ("patch", "rope_theta", "rope_frames", "norm_eps", "init_std")}
        return not_among(self, "model.", choices) + broken(self, "model.", rules)
