"""An ``Encoder`` -> a public checkpoint directory that ``transformers`` opens by itself.

    config.json  model.safetensors          float32, public names and layouts (``public_format``)
    configuration_onevision_encoder.py  modeling_onevision_encoder.py
                                            all code it needs (``remote_code``)
    preprocessor_config.json                AutoImageProcessor: CLIP's mean and std, bicubic
    README.md                               the model card

    AutoModel.from_pretrained(folder, trust_remote_code=True)

The directory appears whole or not at all. Raises CheckpointError.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ovtrain.export.model_card import model_card
from ovtrain.export.public_format import (
    CONFIG,
    CONFIG_CODE,
    MODEL_CODE,
    WEIGHTS,
    public_config,
    to_public,
)
from ovtrain.export.remote_code import self_contained
from ovtrain.models.encoder import Encoder
from ovtrain.ops.patchify import CLIP_MEAN, CLIP_STD
from ovtrain.schema.atomic import atomic_open, write_json
from ovtrain.schema.errors import CheckpointError

PREPROCESSOR, CARD = "preprocessor_config.json", "README.md"
BICUBIC = 3


def save_encoder(
    encoder: Encoder,
    folder: Path | str,
    *,
    image_size: int | None = None,
    card: str | None = None,
) -> None:
    """Write ``encoder`` as a new directory. ``image_size``: the side that pictures get from the
    image processor, the encoder's own by default; ``card``: the model card, one without a training
    run by default. Raises CheckpointError where something is in the way."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            str(folder), "is there already", fix="remove it or name another directory"
        )
    temp = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temp.mkdir(parents=True)
    try:
        _write(encoder, temp, image_size or encoder.image_size, card or model_card(encoder))
        os.replace(temp, folder)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _write(encoder: Encoder, folder: Path, image_size: int, card: str) -> None:
    own = {name: tensor.detach().float().cpu() for name, tensor in encoder.state_dict().items()}
    tensors = {n: t.contiguous() for n, t in to_public(own, encoder.config).items()}
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    with open(folder / WEIGHTS, "rb") as handle:
        os.fsync(handle.fileno())
    write_json(folder / CONFIG, public_config(encoder.config, image_size))
    write_json(folder / PREPROCESSOR, preprocessor(image_size))
    for name, text in {**remote_code(), CARD: card}.items():
        with atomic_open(folder / name, "w") as handle:
            handle.write(text)


def remote_code() -> dict[str, str]:
    """The two source files, by name."""
    package = "ovtrain.export"
    relative = {f"{package}.public_config": f".{CONFIG_CODE}"}
    return {
        f"{CONFIG_CODE}.py": self_contained(f"{package}.public_config", "OneVisionEncoderConfig"),
        f"{MODEL_CODE}.py": self_contained(
            f"{package}.public_model", "OneVisionEncoderModel", relative
        ),
    }


def preprocessor(size: int) -> dict[str, Any]:
    """``preprocessor_config.json``: short side to ``size``, centre crop, CLIP's numbers."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
