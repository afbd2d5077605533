"""FeatureStore: what a teacher says of every sample, in parts that tasks write side by side.

A folder with ``store.json`` and, for each part (a run of samples in shard order)::

    part-00000.npy        (n, F) float16
    part-00000.keys.npy   (n,) uint64, hashes of the sample keys
    part-00000.json       {"name", "samples", "width", "sha256": {file: hex}, "stamp", "skipped"},
                          written last

``store.json`` lists the parts, and the checksums of other files that belong to the features (a
teacher's random projection); it is written when all of them are there, so that a store is whole or
absent. Rows are read with ``pread`` into memory of the caller's, never mapped: a process holds
what it asked for, whatever the size of the files.

S samples, F teacher width.
"""

from __future__ import annotations

import json
import os
import resource
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ovtrain.schema.arrays import NOT_AN_ARRAY
from ovtrain.schema.atomic import atomic_open, file_sha256, write_json
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import STORE, describe, read_description

KIND, VERSION = "features", 2
HALF = np.dtype("<f2")
FIX = "make the features again with `ovtrain cluster`"
SPARE_FILES = 1024
"""Files that a process may want to open beside a store's parts."""

Rows = npt.NDArray[np.float16]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Part:
    """``sha256``: hex digests of its two arrays' files, by file name; ``stamp``: what it was made
    of, in its writer's words; ``skipped``: samples that gave no feature."""

    name: str
    samples: int
    width: int
    sha256: dict[str, str]
    stamp: str = ""
    skipped: int = 0

    @classmethod
    def read(cls, folder: Path, name: str) -> Part | None:
        """None where the part is not finished."""
        path = folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise LabelError(str(path), f"not a part's description ({error})", fix=FIX) from error

    def is_there(self, folder: Path) -> bool:
        """Whether both arrays have the form that is said here. Their bytes are ``verify``'s to
        read."""
        try:
            _File(folder / f"{self.name}.npy", self.samples, self.width).close()
            keys = np.load(folder / f"{self.name}.keys.npy", mmap_mode="r", allow_pickle=False)
        except (LabelError, *NOT_AN_ARRAY):
            return False
        return keys.shape == (self.samples,) and keys.dtype == np.uint64


def write_part(
    folder: Path, name: str, features: Rows, keys: Keys, *, stamp: str = "", skipped: int = 0
) -> Part:
    """One part, its description last: one that was there before goes first, so that no arrays are
    ever described by the words of others."""
    (folder / f"{name}.json").unlink(missing_ok=True)
    files = {f"{name}.npy": features.astype(HALF, copy=False), f"{name}.keys.npy": keys}
    for file, array in files.items():
        with atomic_open(folder / file) as handle:
            np.save(handle, array)
    samples, width = features.shape
    digests = {file: file_sha256(folder / file) for file in files}
    part = Part(name, samples, width, digests, stamp, skipped)
    write_json(folder / f"{name}.json", asdict(part))
    return part


def write_store(
    folder: Path,
    parts: Sequence[Part],
    teacher: str,
    fingerprint: str,
    files: Mapping[str, str] | None = None,
) -> None:
    """``store.json`` of parts that are all there. ``files``: hex digests of other files in the
    folder that belong to the features, by name."""
    widths = {part.width for part in parts}
    assert len(widths) == 1, widths
    about: dict[str, Any] = {"width": widths.pop(), "teacher": teacher, "fingerprint": fingerprint}
    about["files"] = dict(files or {})
    samples = sum(part.samples for part in parts)
    describe(folder, KIND, VERSION, samples=samples, parts=[asdict(p) for p in parts], **about)


class _File:
    """Rows of one part's array, read in place; open until ``close``, or until nobody holds it.
    Raises LabelError where it is not that array."""

    def __init__(self, path: Path, samples: int, width: int) -> None:
        self.path, self.samples, self.stride = path, samples, width * HALF.itemsize
        try:
            with open(path, "rb") as handle:
                version = np.lib.format.read_magic(handle)
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(handle)
                self.start = handle.tell()
                size = os.fstat(handle.fileno()).st_size
            self.descriptor = os.open(path, os.O_RDONLY)
            self.close = weakref.finalize(self, os.close, self.descriptor)
        except NOT_AN_ARRAY as error:
            raise LabelError(str(path), f"unreadable ({error})", fix=FIX) from error
        right = (version, shape, fortran, dtype) == ((1, 0), (samples, width), False, HALF)
        if not right or size != self.start + samples * self.stride:
            raise LabelError(
                str(path),
                f"{dtype} {shape} in {size} bytes",
                allowed=f"float16 {(samples, width)}, as its store says",
                fix=FIX,
            )

    def read(self, first: int, out: Rows) -> None:
        """Fill ``out`` with the rows from ``first`` on."""
        view, at = out.view(np.uint8).reshape(-1).data, self.start + first * self.stride
        while len(view):
            got = os.preadv(self.descriptor, [view], at)
            if not got:
                raise LabelError(str(self.path), "was cut short while it was read", fix=FIX)
            view, at = view[got:], at + got


class FeatureStore:
    """An open store. Reads may come from several threads."""

    def __init__(self, folder: Path | str) -> None:
        """Raises LabelError, also where a part's file is not what the store says of it."""
        self.folder = Path(folder)
        about = read_description(self.folder, KIND, VERSION)
        try:
            self.parts = [Part(**part) for part in about["parts"]]
            self.width, self.samples = int(about["width"]), int(about["samples"])
            self.teacher, self.fingerprint = str(about["teacher"]), str(about["fingerprint"])
            self.files = dict(about["files"])
        except (KeyError, TypeError, ValueError) as error:
            raise LabelError(str(self.folder / STORE), f"incomplete ({error})", fix=FIX) from error
        counts = [part.samples for part in self.parts]
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if self.samples != self.starts[-1]:
            found = f"{self.samples} samples, {self.starts[-1]} in its parts"
            raise LabelError(str(self.folder / STORE), found, fix=FIX)
        _allow_files(len(self.parts))
        self._files = [
            _File(self.folder / f"{p.name}.npy", p.samples, self.width) for p in self.parts
        ]

    @classmethod
    def write(
        cls, folder: Path, features: npt.NDArray[Any], keys: Keys, teacher: str, fingerprint: str
    ) -> FeatureStore:
        """A store of one part, of what is in memory."""
        part = write_part(folder, "part-00000", features.astype(np.float16), keys)
        write_store(folder, [part], teacher, fingerprint)
        return cls(folder)

    def __len__(self) -> int:
        return self.samples

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []

    @property
    def identity(self) -> str:
        """Digest of the contents of all parts, keys included."""
        digests = (p.sha256[name] for p in self.parts for name in sorted(p.sha256))
        return sha256("".join(digests).encode()).hexdigest()

    @cached_property
    def keys(self) -> Keys:
        """(S,), in shard order."""
        return np.concatenate([np.empty(0, np.uint64), *map(self._keys_of, self.parts)])

    def _keys_of(self, part: Part) -> Keys:
        path = self.folder / f"{part.name}.keys.npy"
        try:
            found: Keys = np.load(path, allow_pickle=False)
        except NOT_AN_ARRAY as error:
            raise LabelError(str(path), f"unreadable ({error})", fix=FIX) from error
        if found.shape != (part.samples,) or found.dtype != np.uint64:
            allowed = f"uint64 {(part.samples,)}"
            raise LabelError(str(path), f"{found.dtype} {found.shape}", allowed=allowed, fix=FIX)
        return found

    def rows(self, first: int, count: int, out: Rows | None = None) -> Rows:
        """(count, F): rows ``first`` to ``first + count - 1``, into ``out`` if it is given."""
        assert 0 <= first <= first + count <= self.samples, (first, count)
        out = np.empty((count, self.width), HALF) if out is None else out[:count]
        done = 0
        while done < count:
            part = int(np.searchsorted(self.starts, first + done, side="right")) - 1
            many = min(count - done, int(self.starts[part + 1]) - first - done)
            start = first + done - int(self.starts[part])
            self._files[part].read(start, out[done : done + many])
            done += many
        return out

    def take(self, rows: npt.NDArray[np.int64], out: Rows | None = None) -> Rows:
        """(n, F) of rising row numbers; neighbours are read together."""
        out = np.empty((len(rows), self.width), HALF) if out is None else out[: len(rows)]
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        edges = [0, *breaks.tolist(), len(rows)] if len(rows) else [0]
        for start, stop in pairwise(edges):
            self.rows(int(rows[start]), stop - start, out[start:stop])
        return out

    def array(self) -> Rows:
        """(S, F), all of it in memory: for small stores."""
        return self.rows(0, self.samples)

    def verify(self) -> None:
        """Read every file again. Raises LabelError that names one whose checksum is another."""
        for path, digest in self._checksums():
            if not path.is_file() or file_sha256(path) != digest:
                raise LabelError(str(path), "missing or damaged: its checksum is another", fix=FIX)

    def _checksums(self) -> Iterable[tuple[Path, str]]:
        for files in (self.files, *(part.sha256 for part in self.parts)):
            for file, digest in files.items():
                yield self.folder / file, digest


def _allow_files(count: int) -> None:
    """Let this process open ``count`` files and some more, as far as the system permits: often the
    soft limit is 1,024, and a store of 100 million samples has more parts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
