"""An idempotent stage: work that is skipped while its inputs and its configuration stay the same.

``stage.json`` holds what the stage was made from; it is written last, so a stage that was cut short
has none and runs again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from ovtrain.schema.atomic import write_json

STAGE = "stage.json"


def file_state(path: Path) -> list[Any]:
    """Name, size and modification time: what tells that a file changed without reading it."""
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]


def fingerprint(*parts: object) -> str:
    """Hex digest of JSON-able parts; equal parts give equal digests in every process."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def read_stage(path: Path) -> dict[str, Any] | None:
    """The record at ``path``; None where there is none or it is not JSON (then the stage runs)."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_stage(path: Path, record: Mapping[str, Any]) -> None:
    write_json(path, dict(record))


def is_current(folder: Path, print_of_inputs: str, outputs: Iterable[str]) -> bool:
    """Whether ``folder`` was made from these inputs and still holds its outputs."""
    record = read_stage(folder / STAGE)
    made = record is not None and record.get("fingerprint") == print_of_inputs
    return made and all((folder / name).exists() for name in outputs)


def complete(folder: Path, print_of_inputs: str) -> None:
    """Mark ``folder`` as made from these inputs."""
    write_stage(folder / STAGE, {"fingerprint": print_of_inputs})
