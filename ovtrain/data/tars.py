"""Bytes of members of tars, by file, offset and size: ranged reads of files that stay open.

A member is read together with the tar header before it, which must name it, so that an index that
places it elsewhere does not pass another sample's payload off as it; and its checksum, where the
index has one, must be that of its bytes: damage that a decoder conceals is found here.

Not mapped: a file that is cut short while it is mapped ends the process (SIGBUS), a read of it is
short.
"""

from __future__ import annotations

import os
import tarfile
import threading
import zlib
from collections import OrderedDict
from typing import NamedTuple

from ovtrain.data.shard_cache import ShardCache
from ovtrain.schema.errors import MediaError
from ovtrain.schema.sample import key_hash

OPEN_FILES = 128
"""Kept open by each thread."""
HEADER = tarfile.BLOCKSIZE
NAME = 100
"""Bytes of a name in a header; of a longer one it may hold the start alone."""


class Member(NamedTuple):
    """A payload's name, and where it lies; its CRC-32, or None; the hash of its sample's key; what
    the tar holds (its sha256)."""

    name: str
    path: str
    offset: int
    size: int
    crc: int | None
    key: int
    content: str


class _Opened:
    """A thread's open files, the one used last at the end: none is closed under a reader."""

    def __init__(self) -> None:
        self.files: OrderedDict[str, int] = OrderedDict()

    def close(self) -> None:
        while self.files:
            os.close(self.files.popitem()[1])

    __del__ = close

    def descriptor(self, path: str) -> int:
        found = self.files.get(path)
        if found is None:
            found = self.files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self.files) > OPEN_FILES:
                os.close(self.files.popitem(last=False)[1])
        self.files.move_to_end(path)
        return found

    def forget(self, path: str) -> None:
        if path in self.files:
            os.close(self.files.pop(path))


class _OfThread(threading.local):
    """What a thread holds is dropped, and so closed, when it ends."""

    def __init__(self) -> None:
        self.opened = _Opened()


class TarFiles:
    """Thread-safe."""

    def __init__(self, cache: ShardCache | None = None) -> None:
        self._of_thread, self._cache = _OfThread(), cache

    def read(self, member: Member, where: str) -> bytes:
        """The payload. Raises MediaError, which names ``where``, if it cannot be read whole, or is
        not what the index says."""
        if member.offset < HEADER:
            raise MediaError(where, f"index is wrong ({member.name} lies outside its tar)")
        kept = self._kept(member)
        if kept is not None:
            return kept
        data = self._read(member, where)
        payload = checked(data, member, where)
        if self._cache is not None and member.crc is not None:
            self._cache.keep(member.content, member.offset - HEADER, data)
        return payload

    def _kept(self, member: Member) -> bytes | None:
        """The payload as the cache has it, if it has."""
        if self._cache is None or member.crc is None:
            return None
        start, length = member.offset - HEADER, HEADER + member.size
        data = self._cache.read(member.content, start, length)
        try:
            return checked(data, member, "")
        except MediaError:
            return None

    def _read(self, member: Member, where: str) -> bytes:
        try:
            return self._pread(member)
        except OSError:
            self._of_thread.opened.forget(member.path)  # a file server that restarted, say
        try:
            return self._pread(member)
        except OSError as error:
            self._of_thread.opened.forget(member.path)
            found = f"storage error ({member.path}: {error.strerror})"
            raise MediaError(where, found) from error

    def _pread(self, member: Member) -> bytes:
        descriptor = self._of_thread.opened.descriptor(member.path)
        return os.pread(descriptor, HEADER + member.size, member.offset - HEADER)

    def close(self) -> None:
        """Close this thread's files; other threads' close when those end."""
        self._of_thread.opened.close()


def checked(data: bytes, member: Member, where: str) -> bytes:
    """The payload behind the header. Raises MediaError."""
    size = max(len(data) - HEADER, 0)
    if size != member.size:
        found = f"cut short ({member.name} has {size} of {member.size} bytes)"
        raise MediaError(where, found)
    _check_header(data[:HEADER], member, where)
    payload = data[HEADER:]
    if member.crc is not None and zlib.crc32(payload) != member.crc:
        raise MediaError(where, f"checksum differs ({member.name})")
    return payload


def _check_header(header: bytes, member: Member, where: str) -> None:
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise MediaError(where, f"index is wrong (no member there: {error})") from error
    key, _, name = found.name.partition(".")
    whole = found.name.isascii() and "?" not in key and len(found.name) < NAME  # else see pax
    other = whole and (name != member.name or int(key_hash([key])[0]) != member.key)
    if other or found.size != member.size:
        named = f"{found.name!r}, {found.size} bytes"
        raise MediaError(where, f"index is wrong ({member.name} is {named} there)")
