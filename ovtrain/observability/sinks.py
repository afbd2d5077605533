"""Where metrics go: ``JsonlSink`` always, ``WandbSink`` on request (the only home of wandb).

A row is a flat mapping of metric name -> number (or a small mapping, as ``views``); ``step`` is
always present.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Protocol

from ovtrain.observability.history import read_rows
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import ConfigError


class Sink(Protocol):
    def write(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """Append-only JSON lines; each row is on disk (flushed) when ``write`` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._end_torn_line()
        self._file: IO[str] = open(path, "a")  # noqa: SIM115 (lives as long as the run)

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(dict(row)) + "\n")
        self._file.flush()

    def truncate_after(self, step: int) -> None:
        """Drop rows of later steps: on resume they are computed, and written, again."""
        self._file.close()
        kept = [row for row in read_rows(self.path) if row.get("step", 0) <= step]
        with atomic_open(self.path, "w") as handle:
            handle.writelines(json.dumps(row) + "\n" for row in kept)
        self._file = open(self.path, "a")  # noqa: SIM115

    def close(self) -> None:
        self._file.close()

    def _end_torn_line(self) -> None:
        """A killed writer may leave half a line; a new row must not be glued to it."""
        if self.path.is_file() and (raw := self.path.read_bytes()) and not raw.endswith(b"\n"):
            with open(self.path, "a") as handle:
                handle.write("\n")


class WandbSink:
    """A wandb run whose id follows from the run folder, so that a resumed run continues it.

    ``mode`` "offline" needs no account; upload later with ``wandb sync``. wandb is imported
    here and only here, when the first sink is built. Raises ConfigError where it is not installed.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], mode: str = "offline") -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(
                "run.wandb=true", "wandb is not installed", fix="pip install 'ovtrain[wandb]'"
            ) from error
        self._run = wandb.init(
            id=sha256(str(folder.resolve()).encode()).hexdigest()[:12],
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            mode=mode,
            resume="allow",
        )

    def write(self, row: Mapping[str, Any]) -> None:
        self._run.log(_flat(row), step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """{"views": {"codec": 3}} -> {"views/codec": 3}."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{name}": entry for name, entry in value.items()})
        else:
            flat[key] = value
    return flat
