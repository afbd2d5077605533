"""Encoder section. Sizes are the public release's, plus three that train on a laptop and two of one
and two billion parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ovtrain.config.rules import NOT_NEGATIVE, POSITIVE, broken, not_among


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
    "giant": ModelSize(1536, 36, 24, 6144),
    "gigantic": ModelSize(1664, 48, 16, 8192),
}
ROPE_STYLES = ("rotary", "released")
NORMS = ("layer_norm", "rms_norm")
ATTENTION_BACKENDS = ("auto", "sdpa", "native", "varlen", "flash")


@dataclass(frozen=True)
class ModelConfig:
    """A size of PRESETS; ``width``, ``depth``, ``heads`` and ``mlp`` replace its own where they are
    not 0.

    rope_frames    frames of the virtual grid: t runs from 0 to one below; null: any t.
    norm           layer_norm | rms_norm, of blocks and token outputs.
    init_std       of linear maps; the public 0.02 suits widths from 768 on, narrow encoders learn
                   sooner from 0.05.
    pooling        whether there is an attentive pooling head.
    window_frames  frames per temporal window; the blocks in ``window_layers`` (from 0) attend
                   inside windows. 0 and []: every block sees the whole sample.
    attention      auto takes the fastest backend that runs on the device.
    recompute      activations: 0 keeps all, k recomputes every k-th block in the backward pass,
                   1 every block.
    compile        torch.compile each block.
    """

    preset: str = "large"
    width: int = 0
    depth: int = 0
    heads: int = 0
    mlp: int = 0
    patch: int = 14
    rope_style: str = "rotary"
    rope_theta: float = 10000.0
    rope_frames: int | None = 64
    norm: str = "layer_norm"
    norm_eps: float = 1e-6
    init_std: float = 0.02
    pooling: bool = True
    window_frames: int = 0
    window_layers: tuple[int, ...] = ()
    attention: str = "auto"
    recompute: int = 0
    compile: bool = False

    @property
    def size(self) -> ModelSize:
        known = PRESETS[self.preset]
        own = {name: getattr(self, name) for name in ("width", "depth", "heads", "mlp")}
        return replace(known, **{name: value for name, value in own.items() if value})

    def problems(self) -> list[str]:
        choices = {
            "preset": PRESETS,
            "rope_style": ROPE_STYLES,
            "norm": NORMS,
            "attention": ATTENTION_BACKENDS,
        }
        rules = {
            POSITIVE: ("patch", "rope_theta", "rope_frames", "norm_eps", "init_std"),
            NOT_NEGATIVE: ("width", "depth", "heads", "mlp", "window_frames", "recompute"),
        }
        found = not_among(self, "model.", choices) + broken(self, "model.", rules)
        return found or self._size_problems() + self._window_problems()

    def _size_problems(self) -> list[str]:
        size = self.size
        if size.width % (8 * size.heads) or size.width < 16 * size.heads:
            wide = range(16, size.width + 1, 8)
            counts = sorted(size.width // n for n in wide if size.width % n == 0)
            allowed = ", ".join(map(str, counts)) or "none; model.width is a multiple of 8, from 16"
            return [
                f"model.heads={size.heads} with model.width={size.width}; allowed: {allowed} (each "
                "is a multiple of 8 wide, at least 16, split about 4:6:6 for t, h, w)"
            ]
        return []

    def _window_problems(self) -> list[str]:
        layers, depth = self.window_layers, self.size.depth
        if bool(layers) != bool(self.window_frames):
            return [
                f"model.window_frames={self.window_frames} with model.window_layers="
                f"{list(layers)}; give both or neither"
            ]
        wrong = [i for i in layers if not 0 <= i < depth]
        if wrong:
            return [f"model.window_layers has {wrong}; allowed: 0 to {depth - 1}"]
        return []
