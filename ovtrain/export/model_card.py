"""The README.md of an exported directory: what the model is, where it comes from, how to call it.

Facts only: of the encoder, and of the run that trained it. Nothing is said of its quality.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ovtrain import __version__
from ovtrain.config.data import DataConfig
from ovtrain.config.train import TrainConfig
from ovtrain.models.encoder import Encoder

HEADER = """---
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [onevision_encoder, ovtrain]
---
"""
USE = """## Use

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{folder}", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("{folder}")
pixels = processor(Image.open("picture.jpg"), return_tensors="pt")["pixel_values"]
with torch.no_grad():
    out = model(pixels)            # last_hidden_state (1, N, {width}){pooled}
```

`pixel_values` is (B, 3, H, W), or (B, 3, T, H, W) for video; H and W are multiples of {patch}.
`visible_indices` (B, N) are flat patch indices t * Hp * Wp + h * Wp + w{grid};
`patch_positions` (B, N, 3) give (t, h, w) themselves. With as many indices as patches, say what is
meant: `packed=True`, the patches given are the chosen ones; `packed=False`, choose among them.
"""


@dataclass(frozen=True)
class Training:
    """What a run directory says of itself."""

    config: TrainConfig
    step: int
    about: dict[str, Any]
    loss: float | None


def model_card(encoder: Encoder, training: Training | None = None) -> str:
    """Markdown."""
    parts = [HEADER, "# Vision encoder\n", _model(encoder)]
    parts.append(_training(training) if training else "## Training\n\nNot recorded here.\n")
    config = encoder.config
    frames = (
        "" if config.rope_frames is None else f" on a virtual grid of {config.rope_frames} frames"
    )
    pooled = f", pooler_output (1, {encoder.width})" if config.pooling else ""
    use = USE.format(
        folder="FOLDER", width=encoder.width, pooled=pooled, patch=config.patch, grid=frames
    )
    return "\n".join([*parts, use])


def _table(rows: dict[str, object]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items()), ""])


def _model(encoder: Encoder) -> str:
    config, size = encoder.config, encoder.config.size
    rows: dict[str, object] = {
        "architecture": "OneVision-Encoder (arXiv 2602.08683), bidirectional, no class token",
        "parameters": f"{sum(p.numel() for p in encoder.parameters()):,}",
        "width, layers, heads, MLP": f"{size.width}, {size.depth}, {size.heads}, {size.mlp}",
        "patch": f"{config.patch} x {config.patch}",
        "positions": f"3D, t : h : w = 4 : 6 : 6, theta {config.rope_theta:g}, {config.rope_style}",
        "pooling": "attentive, one probe" if config.pooling else "none",
    }
    if config.window_frames:
        layers = ", ".join(map(str, config.window_layers))
        rows["temporal windows"] = f"{config.window_frames} frames, in layers {layers}"
    note = ""
    if config.rope_style != "released" or config.window_frames:
        note = (
            "\nThe code in this directory is needed: the public release's own model class would "
            "load these\nweights and compute something else, since it knows neither true rotary "
            "positions nor windows.\n"
        )
    return "## Model\n\n" + _table(rows) + note


def _training(training: Training) -> str:
    config, about = training.config, training.about
    run = config.run
    rows: dict[str, object] = {
        "steps": f"{training.step:,} of {run.total_steps:,}",
        "global batch": f"{run.global_batch:,} samples",
        "precision, ranks": f"{run.precision}, {about.get('world_size', 'not recorded')}",
        "learning rate": f"{config.optim.lr:g}, weight decay {config.optim.weight_decay:g}",
        "views of a clip": ", ".join(f"{k} {v:g}" for k, v in vars(config.data.views).items()),
        "tokens per clip": f"{config.data.token_budget:,}",
        "picture side": _picture_sides(config.data),
        "ovtrain, code": f"{about.get('ovtrain', __version__)}, {about.get('code') or 'no commit'}",
        "config": about.get("config_hash", "not recorded"),
    }
    if training.loss is not None:
        rows["training loss, last logged"] = f"{training.loss:.4f}"
    if run.init_from:
        rows["started from"] = json.dumps(run.init_from)
    classes = about.get("head_rows", {})
    sources = {
        source.name: f"share {source.share:g}, {classes.get(source.name, 'no')} classes"
        for source in config.data.sources
    }
    return "\n".join(["## Training\n", _table(rows), "Sources:\n", _table(dict(sources))])


def _picture_sides(data: DataConfig) -> str:
    """One number, or one of each source where they differ."""
    sides = {source.name: data.size_of(source) for source in data.sources}
    if len(set(sides.values())) <= 1:
        return str(data.largest_size)
    return ", ".join(f"{name} {side}" for name, side in sides.items())
