"""Stores that live outside the shards: centroids, and labels keyed by sample key.

Each is a folder with ``store.json`` (version, kind, shapes, the fingerprint of the shards it was
made from) and flat ``.npy`` arrays that are read as memory maps.

Features: ``ovtrain.schema.features``. S samples, C clusters, F teacher width, L labels in all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ovtrain.schema.arrays import NOT_AN_ARRAY
from ovtrain.schema.atomic import atomic_open, write_json
from ovtrain.schema.errors import LabelError
from ovtrain.schema.sample import key_hash

VERSION = 1
STORE, DISTANCES = "store.json", "distances.npy"
HEADER_BYTES = 128


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    with atomic_open(path) as handle:
        np.save(handle, array)


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except NOT_AN_ARRAY as error:
        raise LabelError(str(path), f"unreadable ({error})", fix="rebuild the store") from error


def describe(folder: Path, kind: str, version: int = VERSION, **entries: Any) -> None:
    """Write ``store.json``: what makes a folder a store."""
    write_json(folder / STORE, {"version": version, "kind": kind, **entries})


def read_description(folder: Path | str, kind: str, version: int = VERSION) -> dict[str, Any]:
    """The ``store.json`` of a store of ``kind``. Raises LabelError. Imports nothing heavy."""
    path = Path(folder) / STORE
    fix = f"make it with `ovtrain cluster` or name a folder that holds a {kind} store"
    if not path.is_file():
        raise LabelError(str(path), f"no {kind} store here", fix=fix)
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise LabelError(str(path), f"not JSON ({error})", fix=fix) from error
    if not hasattr(value, "get"):
        raise LabelError(str(path), "not a store's description", allowed="a JSON object", fix=fix)
    if value.get("kind") != kind or value.get("version") != version:
        found = f"kind={value.get('kind')} version={value.get('version')}"
        raise LabelError(str(path), found, allowed=f"kind={kind} version={version}", fix=fix)
    return value


def most_labels(folder: Path | str) -> int:
    """Most labels of one sample of a label store; reads the offsets alone. Raises LabelError."""
    read_description(folder, "labels")
    offsets = _load(Path(folder) / "offsets.npy")
    return int(np.diff(offsets).max(initial=0))


@dataclass(frozen=True)
class CentroidStore:
    """centroids (C, F) float32 and the teacher whose feature space they live in."""

    centroids: npt.NDArray[np.float32]
    teacher: str

    def write(self, folder: Path) -> None:
        _save(folder / "centroids.npy", self.centroids)
        clusters, width = self.centroids.shape
        describe(folder, "centroids", clusters=clusters, width=width, teacher=self.teacher)

    @staticmethod
    def adopt(centroids: Path, folder: Path, teacher: str) -> None:
        """A store of what a ``.npy`` file holds, (C, F) float32; it is copied."""
        clusters, width = _load(centroids).shape
        with open(centroids, "rb") as source, atomic_open(folder / "centroids.npy") as target:
            shutil.copyfileobj(source, target, 1 << 24)
        describe(folder, "centroids", clusters=clusters, width=width, teacher=teacher)

    @classmethod
    def read(cls, folder: Path | str) -> CentroidStore:
        about = read_description(folder, "centroids")
        return cls(_load(Path(folder) / "centroids.npy"), about["teacher"])


@dataclass(frozen=True)
class LabelStore:
    """Labels of each sample, nearest center first.

    keys (S,) uint64 sorted; offsets (S+1,) int64; ids (L,) int32, sample i owning
    ``ids[offsets[i]:offsets[i+1]]``. A sample may own none.
    """

    keys: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int32]
    classes: int
    fingerprint: str

    @classmethod
    def build(
        cls, keys: list[str], labels: list[npt.NDArray[np.int32]], classes: int, fingerprint: str
    ) -> LabelStore:
        """From one array of ids per sample key. Raises LabelError on a hash collision."""
        hashes = key_hash(keys)
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        if len(hashes) > 1 and (hashes[1:] == hashes[:-1]).any():
            raise LabelError("label store", "two sample keys are equal", fix="make keys unique")
        counts = np.array([len(labels[int(i)]) for i in order], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        ids = np.concatenate([np.empty(0, np.int32), *(labels[int(i)] for i in order)])
        return cls(hashes, offsets, ids.astype(np.int32), classes, fingerprint)

    def write(self, folder: Path) -> None:
        _save(folder / "keys.npy", self.keys)
        _save(folder / "offsets.npy", self.offsets)
        _save(folder / "ids.npy", self.ids)
        describe(
            folder,
            "labels",
            samples=len(self.keys),
            classes=self.classes,
            labels=len(self.ids),
            fingerprint=self.fingerprint,
        )

    @classmethod
    def read(cls, folder: Path | str, fingerprint: str | None = None) -> LabelStore:
        """Open a store; with ``fingerprint``, insist that it was made from those shards."""
        folder = Path(folder)
        about = read_description(folder, "labels")
        check_fingerprint(folder, about, fingerprint)
        store = cls(
            _load(folder / "keys.npy"),
            _load(folder / "offsets.npy"),
            _load(folder / "ids.npy"),
            int(about["classes"]),
            about["fingerprint"],
        )
        store._check(folder)
        if len(store.ids) and not 0 <= int(store.ids.min()) <= int(store.ids.max()) < store.classes:
            raise LabelError(
                str(folder / "ids.npy"),
                f"ids from {store.ids.min()} to {store.ids.max()}",
                allowed=f"0 to {store.classes - 1}",
                fix="assign the labels again",
            )
        return store

    def _check(self, folder: Path) -> None:
        """Raises LabelError where the arrays do not fit each other."""
        keys, offsets, ids = self.keys, self.offsets, self.ids
        whole = (
            (keys.dtype, keys.ndim) == (np.uint64, 1)
            and offsets.dtype.kind == "i"
            and ids.dtype.kind == "i"
            and (offsets.shape, ids.ndim) == ((len(keys) + 1,), 1)
        )
        if not (
            whole
            and (int(offsets[0]), int(offsets[-1])) == (0, len(ids))
            and bool((offsets[1:] >= offsets[:-1]).all())
            and bool((keys[1:] > keys[:-1]).all())
        ):
            raise LabelError(
                str(folder),
                f"keys {keys.shape}, offsets {offsets.shape} and ids {ids.shape} do not fit each "
                "other, or are not in order",
                fix="assign the labels again",
            )

    def lookup(self, key: np.uint64) -> npt.NDArray[np.int32]:
        """(l,) ids of one sample; empty when the store does not know it."""
        at = int(np.searchsorted(self.keys, key))
        if at == len(self.keys) or self.keys[at] != key:
            return np.empty(0, dtype=np.int32)
        return np.asarray(self.ids[self.offsets[at] : self.offsets[at + 1]])


@dataclass(frozen=True)
class LabelBlock:
    """n samples in a row and their l labels: keys (n,) uint64 rising, counts (n,) int64 labels of
    each, ids (l,) int32, distances (l,) float32."""

    keys: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int32]
    distances: npt.NDArray[np.float32]


def write_labels(
    folder: Path, blocks: Iterable[LabelBlock], classes: int, fingerprint: str
) -> dict[str, int]:
    """Write a label store as it comes, in the order of its keys, with ``distances.npy`` beside it;
    nothing but a block is held. Returns the numbers of samples and labels.

    Raises LabelError where two keys are equal.
    """
    (folder / STORE).unlink(missing_ok=True)  # a store is whole or absent
    samples = labels = 0
    last = -1
    with ExitStack() as stack:
        keys, offsets, ids, distances = (
            stack.enter_context(_Column(folder / name, dtype))
            for name, dtype in (
                *(("keys.npy", np.uint64), ("offsets.npy", np.int64)),
                *(("ids.npy", np.int32), (DISTANCES, np.float32)),
            )
        )
        offsets.add(np.zeros(1, np.int64))
        for block in blocks:
            if not len(block.keys):
                continue
            if int(block.keys[0]) == last or bool((block.keys[1:] == block.keys[:-1]).any()):
                raise LabelError("label store", "two sample keys are equal", fix="make keys unique")
            last = int(block.keys[-1])
            keys.add(block.keys)
            offsets.add(labels + np.cumsum(block.counts))
            ids.add(block.ids)
            distances.add(block.distances)
            samples, labels = samples + len(block.keys), labels + int(block.counts.sum())
    about = {"samples": samples, "labels": labels}
    describe(folder, "labels", **about, classes=classes, fingerprint=fingerprint)
    return about


class _Column:
    """A one-dimensional ``.npy`` file of a length that is known at the end: headers of such arrays
    are all of one size."""

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self._file = atomic_open(path)
        self.dtype, self.count = np.dtype(dtype), 0

    def __enter__(self) -> Self:
        self.handle = self._file.__enter__()
        self._header()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.handle.seek(0)
            self._header()
        self._file.__exit__(kind, error, trace)

    def add(self, array: npt.NDArray[Any]) -> None:
        self.handle.write(array.astype(self.dtype, copy=False).tobytes())
        self.count += len(array)

    def _header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self.handle, header)
        assert self.handle.tell() == HEADER_BYTES, self.handle.tell()


def check_classes(source: str, folder: str, found: int, wanted: int) -> None:
    """Raise LabelError where a source's labels have other classes than its config says (0: says
    nothing)."""
    if wanted not in (0, found):
        raise LabelError(
            folder,
            f"labels of {found} classes",
            allowed=f"{wanted}, the classes of source {source} in the config",
            fix="name other labels, or change classes (0 takes what the labels have)",
        )


def check_fingerprint(folder: Path, about: dict[str, Any], fingerprint: str | None) -> None:
    """Raise LabelError where a store was made from other shards than the ones at hand."""
    if fingerprint is not None and about["fingerprint"] != fingerprint:
        raise LabelError(
            str(folder / STORE),
            f"labels made from shards {about['fingerprint'][:12]}, the shards here are "
            f"{fingerprint[:12]}",
            fix="assign labels for these shards with `ovtrain cluster`",
        )
