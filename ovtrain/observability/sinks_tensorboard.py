"""Metrics to TensorBoard's event files below ``RUN/tensorboard``; every step once across kills and
resumptions. The only home of tensorboard.

A row is flushed when ``write`` returns, so a checkpoint never knows more steps than the files do.
On a resumption the new file says from which step on TensorBoard is to forget what older files hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovtrain.observability.history import METRICS, read_rows
from ovtrain.observability.sinks import flat
from ovtrain.schema.errors import ConfigError

FOLDER = "tensorboard"


class TensorBoardSink:
    """``step``: the one that the run goes on from. A run that had no such sink before gives all its
    earlier rows. Raises ConfigError where tensorboard is not installed."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "run.tensorboard",
                "tensorboard is not installed",
                fix="pip install 'ovtrain[tensorboard]'",
            ) from error
        known = any((folder / FOLDER).glob("events.*"))
        self._writer = SummaryWriter(str(folder / FOLDER), purge_step=step + 1 if known else None)
        for row in [] if known else read_rows(folder / METRICS):
            self.write(row)

    def write(self, row: Mapping[str, Any]) -> None:
        for key, value in flat(row).items():
            if key not in ("step", "time") and isinstance(value, (int, float)):
                self._writer.add_scalar(key, value, int(row["step"]), walltime=row["time"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
