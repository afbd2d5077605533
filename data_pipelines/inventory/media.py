"""Where a media file lies: a file of its own, or a member of a tar, read in place."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from ovtrain.schema.errors import MediaError

BLOCK = 1 << 20


class Window(io.RawIOBase):
    """``size`` bytes of a file from ``offset`` on, as a file of their own."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by ``close``
        self._offset, self._size, self._at = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = min(len(buffer), max(self._size - self._at, 0))
        data = os.pread(self._file.fileno(), wanted, self._offset + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class MediaFile:
    """``name``: as users know it, relative to the folder, TAR/MEMBER for members of tars; ``file``:
    what holds it; ``offset``, ``size``: the bytes in there, size -1 = all."""

    name: str
    file: str
    offset: int = 0
    size: int = -1

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()

    def source(self, folder: Path) -> str | BinaryIO:
        """What PyAV opens: a path, or a file object of a tar's member."""
        path = folder / self.file
        if self.size < 0:
            return str(path)
        return io.BufferedReader(Window(path, self.offset, self.size), BLOCK)

    def open(self, folder: Path) -> BinaryIO:
        found = self.source(folder)
        return open(found, "rb") if isinstance(found, str) else found

    def read(self, folder: Path) -> bytes:
        """All bytes. Raises MediaError where there are fewer than the tar says."""
        with self.open(folder) as handle:
            data = handle.read()
        if self.size >= 0 and len(data) != self.size:
            raise MediaError(self.name, f"cut short ({len(data)} of {self.size} bytes)")
        return data

    def content(self, folder: Path) -> str:
        """Hash of the bytes; equal files have equal ones."""
        digest = blake2b(digest_size=16)
        with self.open(folder) as handle:
            while block := handle.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()
