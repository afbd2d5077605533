"""The public configuration class; every exported directory holds a copy (``remote_code``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig


class OneVisionEncoderConfig(PretrainedConfig):
    """The public release's keys, and ours:

    rope_style     ``rotary``: pairs share one angle; ``released``: as in the public release.
    window_frames, window_layers
                   frames per temporal window, and the layers that attend inside windows.

    ``rope_temporal_size``: frames of the virtual grid, ``None`` for as many as are given.
    """

    model_type = "onevision_encoder"

    def __init__(
        self,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        num_channels: int = 3,
        image_size: int = 448,
        patch_size: int = 14,
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-6,
        layer_norm_type: str = "layer_norm",
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        rope_theta: float = 10000.0,
        rope_temporal_size: int | None = 64,
        rope_style: str = "released",
        use_head: bool = True,
        window_frames: int = 0,
        window_layers: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_channels = num_channels
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.layer_norm_type = layer_norm_type
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.rope_theta = rope_theta
        self.rope_temporal_size = rope_temporal_size
        self.rope_style = rope_style
        self.use_head = use_head
        self.window_frames = window_frames
        self.window_layers = list(window_layers)
