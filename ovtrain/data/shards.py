"""ShardReader: random access to the samples of one source through the tars' byte offsets.

The tars stay plain WebDataset; the ``.npz`` index beside each gives the offsets. Samples are
numbered 0..S-1 in shard order. Thread-safe.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ovtrain.data.tars import Member, TarFiles
from ovtrain.schema.errors import ManifestError, MediaError
from ovtrain.schema.grid import PatchGrid
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
        self._files = TarFiles()
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
        return self._files.read(self.locate(i)[name], self.name(i))

    def locate(self, i: int) -> dict[str, Member]:
        """Where each member of sample i lies, by name."""
        shard = bisect_right(self._starts, i) - 1
        index, row = self._indexes[shard], i - self._starts[shard]
        path = str(self.folder / self.manifest.shards[shard].name)
        places = zip(index.offsets[row].tolist(), index.sizes[row].tolist(), strict=True)
        return {
            name: Member(name, path, *place)
            for name, place in zip(MEMBERS[self.manifest.kind], places, strict=True)
        }

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
    """(T, H, W) uint16 energies of a video sample. Raises MediaError."""
    try:
        energy = np.load(io.BytesIO(payload), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise MediaError(where, f"{ENERGY} is damaged ({error})") from error
    if energy.dtype != np.uint16 or energy.shape != grid.shape:
        raise MediaError(
            where,
            f"{ENERGY} is damaged ({energy.dtype} {energy.shape})",
            allowed=f"uint16 {grid.shape}",
        )
    return energy
