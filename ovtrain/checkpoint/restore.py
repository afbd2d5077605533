"""From a run directory back to an encoder, on any world size."""

from __future__ import annotations

import logging
from pathlib import Path

from ovtrain.checkpoint import storage
from ovtrain.checkpoint.encoder_shards import EncoderReader
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.models.encoder import Encoder, build_encoder
from ovtrain.schema.errors import CheckpointError

log = logging.getLogger(__name__)


def checkpoint_folder(path: str | Path) -> Path:
    """A run directory, its ``checkpoints`` folder or a step directory -> the newest sound step
    directory; a damaged one is refused by name, as a run that resumes does.

    Raises CheckpointError.
    """
    path = Path(path)
    if (path / storage.STATE).is_file():
        storage.check(path)
        return path
    refused = list[str]()
    for folder in (path / "checkpoints", path):
        for step in storage.candidates(folder):
            try:
                storage.check(step)
            except CheckpointError as error:
                log.warning("refused %s", error)
                refused.append(str(error))
                continue
            return step
    raise CheckpointError(
        str(path),
        "no sound checkpoint here: " + " | ".join(refused) if refused else "no checkpoint here",
        fix="name a run directory that has saved one",
    )


def restore_encoder(encoder: Encoder, folder: Path) -> None:
    """Fill an encoder from a step directory. Raises CheckpointError where another was saved."""
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    encoder.load_state_dict(EncoderReader(folder).whole("param", shapes))


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
