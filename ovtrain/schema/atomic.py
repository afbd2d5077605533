"""Writes that are either wholly there or not there: temp file in the same folder, then rename."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from threading import get_ident
from typing import IO, Any


@contextmanager
def naming(path: Path | str) -> Generator[None, None, None]:
    """An OSError inside names ``path`` where the system names no file, as of a write to a full
    disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def atomic_open(
    path: Path | str, mode: str = "wb", *, sync: bool = True
) -> Generator[IO[Any], None, None]:
    """Open a temp file beside ``path``; on a clean exit it is flushed to disk and takes the name.

    On an exception the temp file is removed and an older ``path`` stays as it was. ``sync=False``
    leaves the flush to the system: for caches, which can be made again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.{get_ident()}.tmp")
    try:
        with naming(path), open(temp, mode) as handle:
            yield handle
            handle.flush()
            if sync:
                os.fsync(handle.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def sweep(folder: Path, *names: str) -> None:
    """Remove temp files of ``names`` (patterns) that killed writers left in ``folder``, which no
    living process may be writing."""
    for name in names:
        for temp in folder.glob(f".{name}.*.*.tmp"):
            temp.unlink(missing_ok=True)


def write_json(path: Path | str, value: object) -> None:
    """Write ``value`` as sorted, indented JSON, atomically."""
    with atomic_open(path, "w") as handle:
        json.dump(value, handle, indent=2, sort_keys=True)
        handle.write("\n")


def file_sha256(path: Path | str) -> str:
    """Hex digest of a file's bytes."""
    digest = sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
