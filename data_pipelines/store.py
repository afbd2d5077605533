"""Samples that wait for their shards: payloads one behind the other in a file per part.

A row of the ``samples`` manifest says where each payload lies, and its CRC-32.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.journal import Row, StageError
from data_pipelines.shards.writer import Sample
from ovtrain.schema.sample import Kind

ANEW = "delete .work and manifests/{samples,select,shards}, and run these stages again"


class Stored(NamedTuple):
    """Of a payload in its file."""

    offset: int
    size: int
    crc: int


class SampleStore:
    """Writes ``path``, behind what ``rows`` of an earlier try hold."""

    def __init__(self, path: Path, rows: Iterable[Row]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = (sample for row in rows for sample in row.get("samples", ()))
        places = (Stored(*place) for one in samples for place in one["members"].values())
        self._end = max((place.offset + place.size for place in places), default=0)
        held = path.stat().st_size if path.exists() else 0
        if held < self._end:
            raise StageError(
                str(path),
                f"{held} bytes, where its rows name {self._end}",
                fix=ANEW,
            )
        self._file = open(path, "ab")  # noqa: SIM115 - closed by ``__exit__``
        self._file.truncate(self._end)
        self._name = path.name

    def __enter__(self) -> SampleStore:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, kind: Kind, sample: Sample) -> Row:
        """Write a sample; the row that finds it again."""
        key, members = sample
        places = {name: self._append(payload) for name, payload in members.items()}
        return {"kind": kind, "key": key, "file": self._name, "members": places}

    def _append(self, payload: bytes) -> Stored:
        place = Stored(self._end, len(payload), zlib.crc32(payload))
        self._file.write(payload)
        self._end += len(payload)
        return place

    def flush(self) -> None:
        """Before a row that names the payloads is written."""
        self._file.flush()


def read_sample(folder: Path, row: Mapping[str, Any]) -> Sample:
    """The sample of a row. Raises StageError where its bytes are other ones."""
    path = folder / row["file"]
    members: dict[str, bytes] = {}
    with open(path, "rb") as handle:
        for name, place in row["members"].items():
            offset, size, crc = place
            payload = os.pread(handle.fileno(), size, offset)
            if len(payload) != size or zlib.crc32(payload) != crc:
                raise StageError(f"{path}, {row['key']}.{name}", "not what was written", fix=ANEW)
            members[name] = payload
    return row["key"], members
