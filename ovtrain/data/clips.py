"""Patches of one clip: frames are decoded, one at a time, and only what is wanted of them is kept.

A clip may have a cache file of its raw frames, (T, H, W, 3) uint8, written once and memory-mapped,
so that the processes of a machine share it and only the frames that a view needs are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from ovtrain.data.clock import Clock
from ovtrain.data.decode.pyav import decode_frames
from ovtrain.data.pixels import IntArray, Pixels, gather
from ovtrain.data.shards import ShardReader
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import MediaError
from ovtrain.schema.grid import PatchGrid
from ovtrain.schema.sample import CLIP


@dataclass(frozen=True)
class Clip:
    """An encoded clip that ``read`` gives, of frames as large as ``grid``; ``cache``: its file of
    raw frames, or ""."""

    read: Callable[[], bytes]
    where: str
    grid: PatchGrid
    cache: str = ""
    clock: Clock = field(default_factory=Clock)

    def patches(
        self, where: IntArray, offset: tuple[int, int] = (0, 0), *, mirrored: bool = False
    ) -> Pixels:
        """(N, 3) places, in rising t -> (N, 3*p*p) uint8, moved and mirrored as ``pixels.gather``
        does. Only the frames of ``where`` are converted, nothing behind the last of them is
        decoded. Raises MediaError."""
        patch = self.grid.patch
        out = np.empty((len(where), 3 * patch * patch), np.uint8)
        numbers, starts = np.unique(where[:, 0], return_index=True)
        frames = self.frames(numbers.tolist())
        for start, stop in pairwise([*starts.tolist(), len(where)]):
            with self.clock("decode"):
                _, frame = next(frames)
            with self.clock("crop"):
                gather(frame, where[start:stop], patch, out[start:stop], offset, mirrored=mirrored)
        return out

    def frames(self, wanted: list[int]) -> Iterator[tuple[int, Pixels]]:
        """(number, (H, W, 3) uint8) of the ``wanted`` frames, which are sorted. Raises
        MediaError."""
        if not self.cache:
            return self._decoded(wanted)
        path = Path(self.cache)
        try:
            clip = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            every = list(range(self.grid.frames))
            clip = np.stack([frame for _, frame in self._decoded(every)])
            with atomic_open(path, sync=False) as handle:
                np.save(handle, clip)
        return ((number, clip[number]) for number in wanted)

    def _decoded(self, wanted: list[int]) -> Iterator[tuple[int, Pixels]]:
        size = (self.grid.height * self.grid.patch, self.grid.width * self.grid.patch)
        found = -1
        asked = self._bytes(), self.where, set(wanted), self.grid.frames
        for found, frame in decode_frames(*asked):
            if frame.shape[:2] != size:
                raise MediaError(
                    self.where,
                    f"other size (frames of {frame.shape[0]} x {frame.shape[1]})",
                    allowed=f"{size[0]} x {size[1]}",
                )
            yield found, frame
        if found != wanted[-1]:
            raise MediaError(self.where, f"too few frames (no frame {wanted[-1]})")

    def _bytes(self) -> bytes:
        with self.clock("read"):
            return self.read()


class ClipReader:
    """The clips of a source. Cache files are ``{content}/{i}.npy``: ``content`` hashes the shards'
    own hashes, so other shards with the same sample keys get a folder of their own."""

    def __init__(self, reader: ShardReader, cache_dir: str = "") -> None:
        self.reader = reader
        m = reader.manifest
        self.grid = PatchGrid.from_pixels(m.frames, m.height, m.width, m.patch)
        self.cache = Path(cache_dir) / m.content if cache_dir else None

    def cache_file(self, i: int) -> str:
        return str(self.cache / f"{i}.npy") if self.cache else ""

    def clip(self, i: int) -> Clip:
        return Clip(
            lambda: self.reader.member(i, CLIP), self.reader.name(i), self.grid, self.cache_file(i)
        )
