"""Decoded clips of one source, through an optional cache folder of raw frames.

A cached clip is ``{content}/{i}.npy``, (T, H, W, 3) uint8, written once and memory-mapped, so that
the processes of a machine share it and only the frames that a view needs are touched. ``content``
hashes the shards' own hashes: other shards with the same sample keys get a folder of their own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ovtrain.data.decode.base import Pixels
from ovtrain.data.decode.pyav import decode_clip
from ovtrain.data.shards import ShardReader
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import MediaError
from ovtrain.schema.sample import CLIP


class ClipReader:
    def __init__(self, reader: ShardReader, cache_dir: str = "") -> None:
        self.reader = reader
        self.cache = Path(cache_dir) / reader.manifest.content if cache_dir else None

    def frames(self, i: int, wanted: list[int]) -> Pixels:
        """(len(wanted), H, W, 3) frames of sample i. Raises MediaError."""
        if self.cache is None:
            return self._checked(i, decode_clip(self._clip(i), self.reader.name(i), wanted))
        path = self.cache / f"{i}.npy"
        try:
            clip = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            clip = self._decode_into(path, i)
        return np.asarray(clip[wanted])

    def _clip(self, i: int) -> bytes:
        return self.reader.member(i, CLIP)

    def _decode_into(self, path: Path, i: int) -> Pixels:
        frames = range(self.reader.manifest.frames)
        clip = self._checked(i, decode_clip(self._clip(i), self.reader.name(i), frames))
        with atomic_open(path, sync=False) as handle:
            np.save(handle, clip)
        return clip

    def _checked(self, i: int, clip: Pixels) -> Pixels:
        m = self.reader.manifest
        if clip.shape[1:3] != (m.height, m.width):
            raise MediaError(
                self.reader.name(i),
                f"frames of {clip.shape[1]} x {clip.shape[2]}",
                allowed=f"{m.height} x {m.width}",
            )
        return clip
