"""Step directories on disk.

    checkpoints/
      step-00000100/
        encoder-{rank}-of-{ranks}.safetensors         see encoder_shards.py
        head-{source}-{lo:09d}-{hi:09d}.safetensors   see ovtrain/heads/reshard.py
        state.json                       step, data position, config, code, world size
        manifest.json                    bytes and sha256 of each file above
      latest                             name of the newest whole directory, written last

A directory is built as ``.step-....tmp`` and renamed when every rank has written its files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path
from typing import Any

from ovtrain.schema.atomic import atomic_open, file_sha256, write_json
from ovtrain.schema.errors import CheckpointError

LATEST, MANIFEST, STATE = "latest", "manifest.json", "state.json"
VERSION = 2
_STEP = re.compile(r"step-\d{8,}")
Entries = dict[str, dict[str, Any]]
"""{file name: {"bytes", "sha256"}}."""


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def begin(temp: Path) -> None:
    """An empty directory to write into, whatever a killed writer left there."""
    shutil.rmtree(temp, ignore_errors=True)
    os.makedirs(temp)


def seal(temp: Path, final: Path, state: dict[str, Any], entries: Entries) -> None:
    """Add state and manifest to ``temp``, give it its name, point ``latest`` at it."""
    write_json(temp / STATE, state)
    size, digest = (temp / STATE).stat().st_size, file_sha256(temp / STATE)
    entries = {**entries, STATE: {"bytes": size, "sha256": digest}}
    write_json(temp / MANIFEST, {"version": VERSION, "files": entries, "sha256": _hash_of(entries)})
    _sync(temp)
    if final.exists():
        shutil.rmtree(final)
    os.rename(temp, final)
    _sync(final.parent)
    with atomic_open(final.parent / LATEST, "w") as handle:
        handle.write(final.name + "\n")


def _sync(folder: Path) -> None:
    """Names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash_of(entries: Entries) -> str:
    return sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Entries:
    """Raises CheckpointError where it is missing, damaged or of another version."""
    path = folder / MANIFEST
    try:
        read: Any = json.loads(path.read_text())
        version, entries = read["version"], read["files"]
        sound = read.get("sha256") == _hash_of(entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(str(path), f"unreadable ({error})") from error
    if version != VERSION:
        raise CheckpointError(str(path), f"version {version}", allowed=str(VERSION))
    if not sound:
        raise CheckpointError(str(path), "is damaged")
    return entries


def faults(folder: Path, entries: Entries) -> list[str]:
    """Files of a step directory that are missing, changed or cannot be read, each with what is
    wrong."""
    told = ((name, _fault(folder / name, entry)) for name, entry in entries.items())
    return [f"{name} {fault}" for name, fault in told if fault]


def _fault(path: Path, entry: dict[str, Any]) -> str:
    try:
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"is damaged: {size} bytes instead of {entry['bytes']}"
        sound = file_sha256(path) == entry["sha256"]
    except OSError as error:  # a bad block, a server that is gone
        return f"cannot be read: {error.strerror or error}"
    return "" if sound else "is damaged: other bytes than were written"


def check(folder: Path) -> None:
    """Every file of a step directory present and unchanged. Raises CheckpointError."""
    found = faults(folder, read_manifest(folder))
    if found:
        raise CheckpointError(str(folder), "; ".join(found), fix="take another checkpoint")


def candidates(checkpoints: Path) -> list[Path]:
    """Step directories in the order in which they should be tried: the one that ``latest`` names
    and older ones; all of them, newest first, where it names none that is here."""
    steps = [path for path in checkpoints.glob("step-*") if _STEP.fullmatch(path.name)]
    newest_first = sorted((path for path in steps if path.is_dir()), key=step_of, reverse=True)
    pointer = checkpoints / LATEST
    named = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    if named not in (path.name for path in newest_first):
        return newest_first
    return [path for path in newest_first if step_of(path) <= step_of(checkpoints / named)]


def read_state(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(str(folder / STATE), f"unreadable ({error})") from error


def prune(
    checkpoints: Path, keep: int, newest: int, keep_every: int = 0, refused: Collection[str] = ()
) -> None:
    """Delete what crashed writers left, and of the step directories up to step ``newest`` all but
    the last ``keep`` and every ``keep_every``-th step (0: none). ``refused`` names damaged ones,
    which do not count. Later ones stay: a run that was set back to an older step replaces them when
    it gets there."""
    for path in checkpoints.glob(".*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    steps = [path for path in checkpoints.glob("step-*") if _STEP.fullmatch(path.name)]
    passed = sorted((path for path in steps if step_of(path) <= newest), key=step_of)
    sound = [path for path in passed if path.name not in refused]
    for path in passed[: passed.index(sound[-keep:][0])] if sound else ():
        if not keep_every or step_of(path) % keep_every:
            shutil.rmtree(path)
