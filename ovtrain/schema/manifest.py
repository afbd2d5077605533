"""ShardManifest: what a folder of WebDataset shards holds, with hashes, versioned.

Folder layout, one source each::

    manifest.json            ShardManifest
    {name}-{i:06d}.tar       plain WebDataset
    {name}-{i:06d}.npz       ShardIndex of that tar: keys, member offsets, sizes and checksums

``fingerprint`` hashes the sample keys in shard order; stores of features and labels repeat it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ovtrain.schema.arrays import NOT_ARRAYS
from ovtrain.schema.atomic import atomic_open, file_sha256, write_json
from ovtrain.schema.errors import ManifestError
from ovtrain.schema.sample import MEMBERS, Kind

VERSION = 1
MANIFEST = "manifest.json"
AT_ONCE = 16
"""Files that are looked at together."""


@dataclass(frozen=True)
class ShardInfo:
    """One tar: file name, samples, bytes, sha256."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """Where each sample's members lie in its tar.

    keys (S,) str; offsets (S, M) int64 byte of the payload's start; sizes (S, M) int64; M members
    in the order of ``MEMBERS[kind]``. crcs (S, M) uint32 CRC-32 of the payloads; None in shards
    that were written without.
    """

    keys: list[str]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    crcs: npt.NDArray[np.uint32] | None = None

    def write(self, path: Path) -> None:
        arrays: dict[str, Any] = {"offsets": self.offsets, "sizes": self.sizes}
        if self.crcs is not None:
            arrays["crcs"] = self.crcs
        with atomic_open(path) as handle:
            np.savez(handle, keys=np.array(self.keys, dtype=np.str_), **arrays)

    @classmethod
    def read(cls, path: Path) -> ShardIndex:
        """Raises ManifestError where it cannot be read, or its arrays do not fit each other."""
        try:
            with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as data:
                return _index(data)
        except NOT_ARRAYS as error:
            raise ManifestError(
                str(path),
                f"shard index unreadable ({error})",
                fix="copy the folder or prepare it again",
            ) from error


def _index(data: Mapping[str, npt.NDArray[Any]]) -> ShardIndex:
    keys, offsets, sizes = data["keys"], data["offsets"], data["sizes"]
    crcs = data.get("crcs")
    if keys.dtype.kind != "U" or keys.ndim != 1:
        raise ValueError(f"keys are {keys.dtype} {keys.shape}")
    for name, table in (("offsets", offsets), ("sizes", sizes), ("crcs", crcs)):
        if table is None:
            continue
        if table.dtype.kind not in "iu" or table.ndim != 2 or len(table) != len(keys):
            raise ValueError(f"{name} are {table.dtype} {table.shape}, of {len(keys)} keys")
        if table.shape != offsets.shape:
            raise ValueError(f"{name} are {table.shape}, offsets {offsets.shape}")
    return ShardIndex(
        keys.tolist(),
        offsets.astype(np.int64),
        sizes.astype(np.int64),
        None if crcs is None else crcs.astype(np.uint32),
    )


@dataclass(frozen=True)
class ShardManifest:
    """All shards of one source and the geometry of their samples."""

    source: str
    kind: Kind
    frames: int
    height: int
    width: int
    patch: int
    fingerprint: str
    shards: tuple[ShardInfo, ...]
    version: int = VERSION

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def content(self) -> str:
        """Hash of the shards' own hashes: unlike ``fingerprint`` it tells equal keys with other
        payloads apart."""
        return sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()[:16]

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: Path | str) -> ShardManifest:
        """Read ``folder/manifest.json``. Raises ManifestError."""
        path = Path(folder) / MANIFEST
        fix = "write it with `ovtrain prepare` or point data.sources at a folder that has one"
        if not path.is_file():
            raise ManifestError(str(path), "no shard manifest here", fix=fix)
        try:
            value: dict[str, Any] = json.loads(path.read_text())
            version = value["version"]
            if version != VERSION:
                raise ManifestError(
                    str(path), f"manifest version {version}", allowed=str(VERSION), fix=fix
                )
            shards = tuple(ShardInfo(**shard) for shard in value.pop("shards"))
            manifest = cls(shards=shards, **value)
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ManifestError(str(path), f"not a shard manifest ({error})", fix=fix) from error
        if manifest.kind not in MEMBERS:
            raise ManifestError(str(path), f"kind={manifest.kind}", allowed=", ".join(MEMBERS))
        return manifest

    def check_files(self, folder: Path, *, hashes: bool = False) -> None:
        """Every tar and index present and of the stated size (and hash, when asked).

        Raises one ManifestError that names all the files at fault.
        """
        # Of ten thousand tars on a network file system, each question is a round trip.
        with ThreadPoolExecutor(AT_ONCE) as pool:
            told = pool.map(partial(_fault, folder, hashes), self.shards)
            faults = [fault for fault in told if fault]
        if faults:
            shown = "; ".join(faults[:5]) + (f"; {len(faults) - 5} more" if faults[5:] else "")
            raise ManifestError(
                str(folder / MANIFEST),
                shown,
                fix="copy the folder again or rebuild it with `ovtrain prepare`",
            )


def _fault(folder: Path, hashes: bool, shard: ShardInfo) -> str:
    """What is wrong with a tar or its index; "" where nothing is."""
    tar = folder / shard.name
    try:
        size = tar.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return f"{shard.name} is missing"
    if size != shard.bytes:
        return f"{shard.name} has {size} bytes, not {shard.bytes}"
    if hashes and file_sha256(tar) != shard.sha256:
        return f"{shard.name} has another sha256"
    if not tar.with_suffix(".npz").is_file():
        return f"{tar.with_suffix('.npz').name} is missing"
    return ""


def fingerprint(keys: list[str]) -> str:
    """Hex digest of the sample keys in shard order."""
    return fingerprint_of(["\n".join(keys).encode()])


def fingerprint_of(shards: Iterable[bytes]) -> str:
    """The same from each shard's keys, joined by newlines, one shard at a time."""
    digest, separator = sha256(), b""
    for text in shards:
        if text:
            digest.update(separator)
            digest.update(text)
            separator = b"\n"
    return digest.hexdigest()[:32]
