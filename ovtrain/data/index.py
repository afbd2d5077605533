"""SourceIndex: where every member of a source lies, in flat arrays.

S samples, M members of each. 32 bytes per picture and 44 per clip where no tar reaches 4 GiB (48
and 72 beyond); key strings are not kept: they are read again, shard by shard, for messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ovtrain.schema.errors import ManifestError
from ovtrain.schema.manifest import ShardIndex, ShardInfo, ShardManifest, fingerprint_of
from ovtrain.schema.sample import MEMBERS, key_hash

READERS = 16
"""Index files that are read at a time: storage across a network answers late, not slowly."""
OUTSIDE = 0
"""The offset of a member that its index places outside of its tar; a tar begins with a header."""


@dataclass(frozen=True)
class SourceIndex:
    """starts (shards + 1,) first sample of each shard; hashes (S,) uint64 of the keys; offsets and
    sizes (S, M) unsigned; crcs (S, M) uint32, or None where a shard has none."""

    starts: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    offsets: npt.NDArray[Any]
    sizes: npt.NDArray[Any]
    crcs: npt.NDArray[np.uint32] | None

    @classmethod
    def read(cls, folder: Path, manifest: ShardManifest) -> tuple[SourceIndex, str]:
        """The index, and the fingerprint of its keys. Raises ManifestError."""
        starts = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
        largest = max((shard.bytes for shard in manifest.shards), default=0)
        unsigned = np.uint32 if largest < 2**32 else np.uint64
        shape = (manifest.samples, len(MEMBERS[manifest.kind]))
        hashes = np.empty(manifest.samples, np.uint64)
        offsets, sizes = np.empty(shape, unsigned), np.empty(shape, unsigned)
        crcs, checked = np.empty(shape, np.uint32), True

        def texts() -> Iterator[bytes]:
            nonlocal checked
            for number, part in enumerate(_parts(folder, manifest)):
                rows = slice(int(starts[number]), int(starts[number + 1]))
                hashes[rows], offsets[rows], sizes[rows] = part.hashes, part.offsets, part.sizes
                checked = checked and part.crcs is not None
                if part.crcs is not None:
                    crcs[rows] = part.crcs
                yield part.text

        found = fingerprint_of(texts())
        return cls(starts, hashes, offsets, sizes, crcs if checked else None), found

    def shard(self, i: int) -> tuple[int, int]:
        """Number of sample i's shard, and its row there."""
        number = int(np.searchsorted(self.starts, i, side="right")) - 1
        return number, i - int(self.starts[number])


class _Part(NamedTuple):
    """One shard's rows, its keys joined by newlines."""

    text: bytes
    hashes: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    crcs: npt.NDArray[np.uint32] | None


def _parts(folder: Path, manifest: ShardManifest) -> Iterator[_Part]:
    """In shard order, a few ahead."""
    members = len(MEMBERS[manifest.kind])
    with ThreadPoolExecutor(READERS, "indexes") as pool:
        for first in range(0, len(manifest.shards), 4 * READERS):
            some = manifest.shards[first : first + 4 * READERS]
            yield from pool.map(lambda shard: _part(folder, shard, members), some)


def _part(folder: Path, shard: ShardInfo, members: int) -> _Part:
    path = (folder / shard.name).with_suffix(".npz")
    index = ShardIndex.read(path)
    if index.offsets.shape != (shard.samples, members):
        raise ManifestError(
            str(path),
            "an index of {} samples with {} members".format(*index.offsets.shape),
            allowed=f"{shard.samples} samples with {members} members",
            fix="copy the folder or prepare it again",
        )
    # Not by adding: what stands in a wrong index may be as large as the type holds.
    lies = (index.offsets > 0) & (index.sizes >= 0) & (index.offsets <= shard.bytes)
    lies &= index.sizes <= shard.bytes - np.where(lies, index.offsets, 0)
    offsets = np.where(lies, index.offsets, OUTSIDE)
    text = "\n".join(index.keys).encode(errors="surrogatepass")
    return _Part(text, key_hash(index.keys), offsets, np.where(lies, index.sizes, 0), index.crcs)
