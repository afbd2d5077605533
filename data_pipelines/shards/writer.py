"""Write one source as WebDataset tars with byte-offset indexes and a manifest.

Equal samples give equal bytes: no times, no owners. Each tar is written aside and renamed; the
manifest comes last, so a folder without one is unfinished. Offsets are read back from the tar that
was written rather than computed. Layout: ``ovtrain.schema.manifest``.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from ovtrain.schema.atomic import atomic_open, file_sha256
from ovtrain.schema.errors import ManifestError
from ovtrain.schema.manifest import MANIFEST, ShardIndex, ShardInfo, ShardManifest, fingerprint
from ovtrain.schema.sample import MEMBERS, Kind

Sample = tuple[str, Mapping[str, bytes]]
"""Sample key and its payloads by member name."""


def write_tar(handle: IO[bytes], samples: Iterable[Sample]) -> None:
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
                if name in places.get(key, {}):
                    found = f"{member.name} twice"
                    raise ManifestError(str(path), found, fix="write the shards again")
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


def write_shard(
    folder: Path, source: str, number: int, kind: Kind, samples: Iterable[Sample]
) -> ShardInfo:
    """Tar and index ``number`` of a source."""
    return replace_shard(folder / f"{source}-{number:06d}.tar", kind, samples)


def replace_shard(path: Path, kind: Kind, samples: Iterable[Sample]) -> ShardInfo:
    """Tar and index at ``path``."""
    with atomic_open(path) as handle:
        write_tar(
            handle, ((key, {n: members[n] for n in MEMBERS[kind]}) for key, members in samples)
        )
    index = index_tar(path, kind)
    index.write(path.with_suffix(".npz"))
    return ShardInfo(path.name, len(index.keys), path.stat().st_size, file_sha256(path))


def write_source(
    folder: Path, like: ShardManifest, samples: Iterable[Sample], samples_per_shard: int
) -> ShardManifest:
    """All shards of a source, and its manifest: ``like`` with these samples."""
    (folder / MANIFEST).unlink(missing_ok=True)
    left, shards, keys = iter(samples), list[ShardInfo](), list[str]()
    while part := list(islice(left, samples_per_shard)):
        shards.append(write_shard(folder, like.source, len(shards), like.kind, part))
        keys += [key for key, _ in part]
    manifest = replace(like, shards=tuple(shards), fingerprint=fingerprint(keys))
    write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: ShardManifest) -> None:
    """The last file of a source; shards of an earlier, longer one are removed. Raises ManifestError
    where shards are missing."""
    manifest.check_files(folder)
    kept = {shard.name for shard in manifest.shards}
    for path in folder.glob(f"{manifest.source}-??????.tar"):
        if path.name not in kept:
            path.unlink()
            path.with_suffix(".npz").unlink(missing_ok=True)
    manifest.write(folder)
