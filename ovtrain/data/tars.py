"""Bytes of members of tars, by file, offset and size: ranged reads of files that stay open.

Not mapped: a file that is cut short while it is mapped ends the process (SIGBUS), a read of it is
short.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import NamedTuple

from ovtrain.schema.errors import MediaError

OPEN_FILES = 128
"""Kept open by each thread."""


class Member(NamedTuple):
    """A payload's name, and where it lies."""

    name: str
    path: str
    offset: int
    size: int


class _Opened(threading.local):
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


class TarFiles:
    """Thread-safe."""

    def __init__(self) -> None:
        self._opened = _Opened()

    def read(self, member: Member, where: str) -> bytes:
        """The payload. Raises MediaError, which names ``where``, if it cannot be read whole."""
        try:
            data = os.pread(self._opened.descriptor(member.path), member.size, member.offset)
        except OSError as error:
            found = f"{member.name} is unreadable ({member.path}: {error.strerror})"
            raise MediaError(where, found) from error
        if len(data) != member.size:
            found = f"{member.name} is cut short ({len(data)} of {member.size} bytes)"
            raise MediaError(where, found)
        return data

    def close(self) -> None:
        """Close this thread's files; other threads' close with them."""
        self._opened.close()
