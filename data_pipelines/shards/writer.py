"""Write one source as WebDataset tars with byte-offset indexes and a manifest.

Equal samples give equal bytes: no times, no owners. Each tar is written aside and renamed; the
manifest comes last, so a folder without one is unfinished. Offsets are read back from the tar that
was written rather than computed. Layout: ``ovtrain.schema.manifest``.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from ovtrain.schema.atomic import atomic_open, file_sha256
from ovtrain.schema.errors import ManifestError
from ovtrain.schema.manifest import MANIFEST, ShardIndex, ShardInfo, ShardManifest, fingerprint
from ovtrain.schema.sample import MEMBERS, Kind

Sample = tuple[str, Mapping[str, bytes]]
"""Sample key and its payloads by member name."""


def write_tar(handle: IO[bytes], samples: list[Sample]) -> None:
    """Append ``{key}.{member}`` files to a tar; bytes depend on the samples alone."""
    with tarfile.open(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for name, payload in members.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size, info.mode = len(payload), 0o444
                tar.addfile(info, io.BytesIO(payload))


def index_tar(path: Path, kind: Kind) -> ShardIndex:
    """Keys, offsets, sizes and checksums as they lie in a tar.

    Raises ManifestError on an incomplete sample.
    """
    places: dict[str, dict[str, tuple[int, int, int]]] = {}
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                payload = tar.extractfile(member)
                crc = zlib.crc32(payload.read() if payload else b"")
                places.setdefault(key, {})[name] = (member.offset_data, member.size, crc)
    except (OSError, tarfile.TarError) as error:
        raise ManifestError(str(path), f"not a readable tar ({error})") from error
    for key, found in places.items():
        if set(found) != set(MEMBERS[kind]):
            raise ManifestError(
                f"{path}/{key}",
                f"members {', '.join(sorted(found))}",
                allowed=", ".join(MEMBERS[kind]),
                fix="write the shards again",
            )
    table = [[found[name] for name in MEMBERS[kind]] for found in places.values()]
    places_array = np.array(table, dtype=np.int64).reshape(len(table), len(MEMBERS[kind]), 3)
    offsets, sizes, crcs = np.moveaxis(places_array, -1, 0)
    return ShardIndex(list(places), offsets, sizes, crcs.astype(np.uint32))


class ShardWriter:
    """Collects samples of one source into shards of ``samples_per_shard``."""

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        *,
        source: str,
        frames: int,
        size: int,
        patch: int,
        samples_per_shard: int,
    ) -> None:
        self._folder, self._source = folder, source
        self._kind: Kind = kind
        self._frames, self._size, self._patch = frames, size, patch
        self._limit = samples_per_shard
        self._pending: list[Sample] = []
        self._shards: list[ShardInfo] = []
        self._keys: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample, all its members in any order."""
        self._pending.append((key, {name: members[name] for name in MEMBERS[self._kind]}))
        if len(self._pending) == self._limit:
            self._flush()

    def _flush(self) -> None:
        path = self._folder / f"{self._source}-{len(self._shards):06d}.tar"
        with atomic_open(path) as handle:
            write_tar(handle, self._pending)
        index = index_tar(path, self._kind)
        index.write(path.with_suffix(".npz"))
        size = path.stat().st_size
        self._shards.append(ShardInfo(path.name, len(index.keys), size, file_sha256(path)))
        self._keys += index.keys
        self._pending = []

    def close(self) -> ShardManifest:
        """Write the last shard and the manifest; remove shards of an earlier, longer run."""
        if self._pending:
            self._flush()
        manifest = ShardManifest(
            source=self._source,
            kind=self._kind,
            frames=self._frames,
            height=self._size,
            width=self._size,
            patch=self._patch,
            fingerprint=fingerprint(self._keys),
            shards=tuple(self._shards),
        )
        kept = {shard.name for shard in self._shards}
        for path in self._folder.glob(f"{self._source}-??????.tar"):
            if path.name not in kept:
                path.unlink()
                path.with_suffix(".npz").unlink(missing_ok=True)
        manifest.write(self._folder)
        return manifest
