"""ShardCache: members of tars on slow storage, kept on a local disk once they were read.

One sparse file per tar, of the tar's own layout, named by what the tar holds: other shards under
the same name get another file. Nothing says which parts are there: a reader checks the checksums
that the shard index holds, and what is absent, torn or damaged is read from the tar again. So
processes share it without locks, and a crash leaves nothing to repair.

Reading or writing that fails never fails a sample: the cache goes without.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from ovtrain.config.data import DataConfig

log = logging.getLogger(__name__)
CHECK_EVERY = 64 * 2**20
"""Bytes that a process may write before it looks again at what all have written."""
DISK_KEPT_FREE = 0.05


class ShardCache:
    """``folder`` and the bytes it may hold; whatever else lies there counts."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._step = min(CHECK_EVERY, max(limit // 64, 1))
        self._room = 0
        self._full = False

    @classmethod
    def of(cls, data: DataConfig) -> ShardCache | None:
        """What a config asks for."""
        if not data.shard_cache:
            return None
        return cls(Path(data.shard_cache), int(data.shard_cache_gib * 2**30))

    def read(self, content: str, start: int, length: int) -> bytes:
        """What the cache has of a tar; empty, or anything, where it was not kept."""
        with suppress(OSError):
            descriptor = os.open(self._path(content), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(descriptor, length, start)
            finally:
                os.close(descriptor)
        return b""

    def keep(self, content: str, start: int, data: bytes) -> None:
        """Keep a part of a tar, if there is room."""
        if self._full:
            return
        try:
            self._make_room(len(data))
            if not self._full:
                self._write(content, start, data)
        except OSError as error:
            self._stop(f"{error.strerror}")

    def _write(self, content: str, start: int, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._path(content), flags, 0o644)
        try:
            self._room -= os.pwrite(descriptor, data, start)
        finally:
            os.close(descriptor)

    def _make_room(self, size: int) -> None:
        """Look at the disk where what was granted is used up."""
        if self._room >= size:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        disk = os.statvfs(self.folder)
        spare = disk.f_frsize * (disk.f_bavail - DISK_KEPT_FREE * disk.f_blocks)
        left = int(min(self.limit - self._held(), spare))
        if left < size:
            self._stop("it is full")
        self._room = min(max(self._step, size), left)

    def _held(self) -> int:
        """Bytes on disk."""
        with os.scandir(self.folder) as entries:
            return sum(512 * entry.stat().st_blocks for entry in entries if entry.is_file())

    def _stop(self, why: str) -> None:
        self._full = True
        log.warning("data.shard_cache=%s takes no more: %s", self.folder, why)

    def _path(self, content: str) -> Path:
        return self.folder / f"{content}.tar"
