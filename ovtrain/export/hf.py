"""A run directory -> a public checkpoint directory (``config.json`` + ``model.safetensors``).

    python -m ovtrain.export.hf RUN --to DIR

float32, names and layouts of ``public_format``. The directory appears whole or not at all. The two
files of remote code that ``transformers`` needs to build the model by itself are not written yet;
until then ``ovtrain.export.load`` and any code with the public model class read it. Raises
CheckpointError.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from safetensors.torch import save_file

from ovtrain.checkpoint.restore import open_run
from ovtrain.export.public_format import CONFIG, WEIGHTS, public_config, to_public
from ovtrain.models.encoder import Encoder
from ovtrain.schema.atomic import write_json
from ovtrain.schema.errors import CheckpointError, exit_status


def save_encoder(encoder: Encoder, folder: Path | str) -> None:
    """Write ``encoder`` as a new directory. Raises CheckpointError where one is in the way."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            str(folder), "is there already", fix="remove it or name another directory"
        )
    temp = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temp.mkdir(parents=True)
    try:
        _write(encoder, temp)
        os.replace(temp, folder)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _write(encoder: Encoder, folder: Path) -> None:
    own = {name: tensor.detach().float().cpu() for name, tensor in encoder.state_dict().items()}
    tensors = {n: t.contiguous() for n, t in to_public(own, encoder.config).items()}
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    with open(folder / WEIGHTS, "rb") as handle:
        os.fsync(handle.fileno())
    write_json(folder / CONFIG, public_config(encoder.config))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("ovtrain.export.hf", description="Export a run's encoder.")
    parser.add_argument("run", help="run directory")
    parser.add_argument("--to", required=True, help="directory to write")
    arguments = parser.parse_args(argv)

    def work() -> None:
        encoder, _ = open_run(arguments.run)
        save_encoder(encoder, arguments.to)
        print(arguments.to)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
