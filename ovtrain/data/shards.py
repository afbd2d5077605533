"""ShardReader: random access to the samples of one source through the tars' byte offsets.

The tars stay plain WebDataset; the ``.npz`` index beside each gives the offsets. Samples are
numbered 0..S-1 in shard order. Reads are memory-mapped and thread-safe.
"""

from __future__ import annotations

import io
import mmap
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ovtrain.schema.errors import ManifestError, MediaError
from ovtrain.schema.manifest import ShardIndex, ShardManifest, fingerprint
from ovtrain.schema.sample import ENERGY, MEMBERS, META, SampleMeta


class ShardReader:
    """Samples of the source whose ``manifest.json`` lies in ``folder``.

    Raises ManifestError when a shard or index is missing, or holds other keys than the manifest
    says.
    """

    def __init__(self, folder: Path | str, *, check: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = ShardManifest.read(self.folder)
        if check:
            self.manifest.check_files(self.folder)
        names = [shard.name for shard in self.manifest.shards]
        self._indexes = [ShardIndex.read(self._index_path(name)) for name in names]
        self._starts = list(accumulate((len(i.keys) for i in self._indexes), initial=0))
        self._maps: dict[int, mmap.mmap] = {}
        self._members = {name: at for at, name in enumerate(MEMBERS[self.manifest.kind])}
        if check and fingerprint(self.keys) != self.manifest.fingerprint:
            raise ManifestError(
                str(self.folder),
                "the shard indexes hold other sample keys than manifest.json says",
                fix="rebuild the shards or copy the folder again",
            )

    def _index_path(self, name: str) -> Path:
        return (self.folder / name).with_suffix(".npz")

    @cached_property
    def keys(self) -> list[str]:
        return [key for index in self._indexes for key in index.keys]

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, i: int) -> str:
        """``shard.tar/key`` of sample i, for messages."""
        shard = bisect_right(self._starts, i) - 1
        return f"{self.manifest.shards[shard].name}/{self.keys[i]}"

    def member(self, i: int, name: str) -> bytes:
        """Payload of one member of sample i. Raises MediaError where the tar is cut short."""
        shard = bisect_right(self._starts, i) - 1
        index = self._indexes[shard]
        row, column = i - self._starts[shard], self._members[name]
        offset, size = int(index.offsets[row, column]), int(index.sizes[row, column])
        data = self._map(shard)[offset : offset + size]
        if len(data) != size:
            raise MediaError(self.name(i), f"{name} is cut short ({len(data)} of {size} bytes)")
        return data

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            with open(self.folder / self.manifest.shards[shard].name, "rb") as handle:
                self._maps[shard] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]

    def meta(self, i: int) -> SampleMeta:
        return SampleMeta.from_json(self.member(i, META), self.name(i))

    def energy(self, i: int) -> npt.NDArray[np.uint16]:
        """(T, H, W) uint16 energies of a video sample. Raises MediaError."""
        try:
            energy = np.load(io.BytesIO(self.member(i, ENERGY)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise MediaError(self.name(i), f"{ENERGY} is damaged ({error})") from error
        m = self.manifest
        expected = (m.frames, m.height // m.patch, m.width // m.patch)
        if energy.dtype != np.uint16 or energy.shape != expected:
            raise MediaError(
                self.name(i),
                f"{ENERGY} is {energy.dtype} {energy.shape}",
                allowed=f"uint16 {expected}",
            )
        return energy

    def close(self) -> None:
        for mapped in self._maps.values():
            mapped.close()
        self._maps.clear()
