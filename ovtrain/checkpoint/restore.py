"""From a run directory back to an encoder, on any world size."""

from __future__ import annotations

from pathlib import Path

from ovtrain.checkpoint import storage
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.models.encoder import Encoder, build_encoder
from ovtrain.schema.errors import CheckpointError


def checkpoint_folder(path: str | Path) -> Path:
    """A run directory, its ``checkpoints`` folder or a step directory -> the step directory.

    Raises CheckpointError.
    """
    path = Path(path)
    for folder in (path / "checkpoints", path):
        found = storage.latest(folder)
        if found is not None:
            return found
    if (path / storage.ENCODER).is_file():
        return path
    raise CheckpointError(
        str(path), "no checkpoint here", fix="name a run directory that has saved one"
    )


def restore_encoder(encoder: Encoder, folder: Path) -> None:
    """Fill an encoder from a step directory. Raises CheckpointError on other shapes."""
    saved = storage.read_encoder(folder)
    own = encoder.state_dict()
    wrong = sorted(n for n in own if n not in saved or saved[n].shape != own[n].shape)
    if wrong or set(saved) - set(own):
        raise CheckpointError(
            str(folder),
            f"holds another encoder (first difference: {(wrong or sorted(set(saved)))[0]})",
            fix="use the model.preset it was trained with",
        )
    encoder.load_state_dict(saved)


def open_run(run: str | Path) -> tuple[Encoder, TrainConfig]:
    """The trained encoder of a run directory and the config that made it.

    Raises CheckpointError.
    """
    folder = checkpoint_folder(run)
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise CheckpointError(
            str(path), "missing", fix="name a run directory, not a checkpoint in it"
        )
    config = load(TrainConfig, path)
    encoder = build_encoder(config.model, seed=0)
    restore_encoder(encoder, folder)
    return encoder, config
