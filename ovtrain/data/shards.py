"""ShardReader: random access to the samples of one source through the tars' byte offsets.

The tars stay plain WebDataset; the ``.npz`` index beside each gives the offsets. Samples are
numbered 0..S-1 in shard order. Thread-safe.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from ovtrain.data.index import SourceIndex
from ovtrain.data.tars import Member, TarFiles
from ovtrain.schema.arrays import NOT_AN_ARRAY
from ovtrain.schema.errors import ManifestError, MediaError
from ovtrain.schema.grid import PatchGrid
from ovtrain.schema.manifest import ShardIndex, ShardManifest
from ovtrain.schema.sample import ENERGY, MEMBERS, META, SampleMeta

HEADERS = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}
"""Of ``.npy`` files, by version."""
KEYS_HELD = 16
"""Shards whose key strings are held, for messages."""


class ShardReader:
    """Samples of the source whose ``manifest.json`` lies in ``folder``. ``hashes``: (S,) uint64 of
    the sample keys.

    Raises ManifestError when a shard or index is missing, or holds other keys than the manifest
    says.
    """

    def __init__(self, folder: Path | str, *, check: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = ShardManifest.read(self.folder)
        if check:
            self.manifest.check_files(self.folder)
        self._index, found = SourceIndex.read(self.folder, self.manifest)
        self.hashes = self._index.hashes
        self._keys_of = lru_cache(KEYS_HELD)(self._read_keys)
        self._files = TarFiles()
        if check and found != self.manifest.fingerprint:
            raise ManifestError(
                str(self.folder),
                "the shard indexes hold other sample keys than manifest.json says",
                fix="rebuild the shards or copy the folder again",
            )

    def _read_keys(self, shard: int) -> list[str]:
        name = self.manifest.shards[shard].name
        return ShardIndex.read((self.folder / name).with_suffix(".npz")).keys

    @property
    def keys(self) -> list[str]:
        """Every sample's key, read from the indexes: some 100 bytes of memory each."""
        return [key for shard in range(len(self.manifest.shards)) for key in self._read_keys(shard)]

    @property
    def has_checksums(self) -> bool:
        return self._index.crcs is not None

    def __len__(self) -> int:
        return len(self.hashes)

    def key(self, i: int) -> str:
        shard, row = self._index.shard(i)
        return self._keys_of(shard)[row]

    def name(self, i: int) -> str:
        """``shard.tar/key`` of sample i, for messages."""
        shard, row = self._index.shard(i)
        return f"{self.manifest.shards[shard].name}/{self._keys_of(shard)[row]}"

    def place(self, i: int) -> str:
        """``shard.tar#row`` of sample i: what can be said of it without its key."""
        shard, row = self._index.shard(i)
        return f"{self.manifest.shards[shard].name}#{row}"

    def member(self, i: int, name: str) -> bytes:
        """Payload of one member of sample i. Raises MediaError where it is not what the index says
        it is."""
        return self._files.read(self.locate(i)[name], self.name(i))

    def locate(self, i: int) -> dict[str, Member]:
        """Where each member of sample i lies, by name."""
        index, (number, _) = self._index, self._index.shard(i)
        shard = self.manifest.shards[number]
        path, key, names = str(self.folder / shard.name), int(index.hashes[i]), self._names
        offsets, sizes = index.offsets[i].tolist(), index.sizes[i].tolist()
        crcs = [None] * len(names) if index.crcs is None else index.crcs[i].tolist()
        return {
            name: Member(name, path, offset, size, crc, key, shard.sha256)
            for name, offset, size, crc in zip(names, offsets, sizes, crcs, strict=True)
        }

    @property
    def _names(self) -> tuple[str, ...]:
        return MEMBERS[self.manifest.kind]

    def meta(self, i: int) -> SampleMeta:
        return SampleMeta.from_json(self.member(i, META), self.name(i))

    def energy(self, i: int) -> npt.NDArray[np.uint16]:
        """(T, H, W) uint16 energies of a video sample. Raises MediaError."""
        m = self.manifest
        grid = PatchGrid.from_pixels(m.frames, m.height, m.width, m.patch)
        return read_energy(self.member(i, ENERGY), grid, self.name(i))

    def close(self) -> None:
        self._files.close()


def read_energy(payload: bytes, grid: PatchGrid, where: str) -> npt.NDArray[np.uint16]:
    """(T, H, W) uint16 energies of a video sample, read-only. Raises MediaError."""
    try:
        stream = io.BytesIO(payload)
        shape, columns, dtype = HEADERS[read_magic(stream)](stream)
        if dtype != np.uint16 or shape != grid.shape:
            raise ValueError(f"{dtype} {shape}")
        energy = np.frombuffer(payload, np.uint16, grid.size, stream.tell())
    except NOT_AN_ARRAY as error:
        found = f"energy is damaged ({ENERGY}: {error})"
        raise MediaError(where, found, allowed=f"uint16 {grid.shape}") from error
    return energy.reshape(shape, order="F" if columns else "C")
