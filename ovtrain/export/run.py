"""A run directory -> a public checkpoint directory, its model card filled from the run.

    python -m ovtrain.export.run RUN --to DIR

Raises CheckpointError.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ovtrain.checkpoint.restore import checkpoint_folder, open_run
from ovtrain.checkpoint.storage import read_state
from ovtrain.config.train import TrainConfig
from ovtrain.export.hf import save_encoder
from ovtrain.export.model_card import Training, model_card
from ovtrain.observability.history import METRICS, column, read_object, read_rows
from ovtrain.schema.errors import exit_status


def read_training(run: str | Path, config: TrainConfig) -> Training:
    """Facts of the newest checkpoint of ``run``. Raises CheckpointError."""
    run = Path(run)
    step = int(read_state(checkpoint_folder(run))["step"])
    losses = [value for at, value in column(read_rows(run / METRICS), "loss") if at <= step]
    about = read_object(run / "run.json") or {}
    return Training(config, step, about, losses[-1] if losses else None)


def export(run: str, folder: str) -> None:
    """Write the newest checkpoint of ``run``."""
    encoder, config = open_run(run)
    card = model_card(encoder, read_training(run, config))
    save_encoder(encoder, folder, image_size=config.data.largest_size, card=card)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("ovtrain.export.run", description="Export a run's encoder.")
    parser.add_argument("run", help="run directory")
    parser.add_argument("--to", required=True, help="directory to write")
    arguments = parser.parse_args(argv)

    def work() -> None:
        export(arguments.run, arguments.to)
        print(arguments.to)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
