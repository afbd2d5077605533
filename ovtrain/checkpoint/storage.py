"""Step directories on disk.

    checkpoints/
      step-00000100/
        encoder.safetensors              {param,first,second}/{name}, float32, unsharded
        head-{source}-{lo:09d}-{hi:09d}.safetensors   see ovtrain/heads/reshard.py
        state.json                       step, data position, config, world size
        manifest.json                    bytes and sha256 of each file above
      latest                             name of the newest whole directory, written last

A directory is built as ``.step-....tmp`` and renamed when every rank has written its files.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ovtrain.schema.atomic import atomic_open, file_sha256, write_json
from ovtrain.schema.errors import CheckpointError

LATEST, MANIFEST, STATE, ENCODER = "latest", "manifest.json", "state.json", "encoder.safetensors"


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file, flushed to disk."""
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(path))
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises CheckpointError where the file is damaged."""
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(str(path), f"unreadable ({error})") from error


def seal(temp: Path, final: Path) -> None:
    """Write the manifest of ``temp``, give it its name, point ``latest`` at it."""
    files = sorted(p for p in temp.iterdir() if p.name != MANIFEST)
    entries = {p.name: {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in files}
    write_json(temp / MANIFEST, {"version": 1, "files": entries})
    if final.exists():
        shutil.rmtree(final)
    os.rename(temp, final)
    with atomic_open(final.parent / LATEST, "w") as handle:
        handle.write(final.name + "\n")


def check(folder: Path) -> None:
    """Every file of a step directory present and unchanged. Raises CheckpointError."""
    try:
        entries: dict[str, Any] = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(str(folder / MANIFEST), f"unreadable ({error})") from error
    faults: list[str] = []
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
            faults.append(f"{name} is damaged")
    if faults:
        raise CheckpointError(
            str(folder),
            "; ".join(faults),
            fix=f"delete this directory and put the name of an older one into {LATEST}",
        )


def latest(checkpoints: Path) -> Path | None:
    """The newest whole step directory, or None when there is none. Raises CheckpointError."""
    pointer = checkpoints / LATEST
    if not pointer.is_file():
        return None
    folder = checkpoints / pointer.read_text().strip()
    if not folder.is_dir():
        raise CheckpointError(
            str(pointer), f"names {folder.name}, which is not here", fix="name one that is"
        )
    return folder


def read_state(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(str(folder / STATE), f"unreadable ({error})") from error


def read_encoder(folder: Path, part: str = "param") -> dict[str, Tensor]:
    """Tensors of one part (param, first, second) by parameter name."""
    tensors = read_tensors(folder / ENCODER)
    prefix = part + "/"
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def prune(checkpoints: Path, keep: int, newest: int) -> None:
    """Delete what crashed writers left, and of the step directories up to step ``newest`` all but
    the last ``keep``. Later ones stay: a run that was set back to an older step replaces them when
    it gets there."""
    for path in checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(path)
    passed = [path for path in checkpoints.glob("step-*") if path.name <= step_name(newest)]
    for path in sorted(passed)[:-keep]:
        shutil.rmtree(path)
