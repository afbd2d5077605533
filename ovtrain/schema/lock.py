"""One writer per folder: a lock that goes with its process, however that ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import time
from pathlib import Path

from ovtrain.schema.errors import OvtrainError

log = logging.getLogger(__name__)
LOCK = "lock"


class FolderTaken(OvtrainError):
    """Another process writes in this folder."""


def take(folder: Path, what: str) -> None:
    """Hold ``folder`` for this process until it ends. Raises FolderTaken naming the holder.

    ``what``: the key or option that names the folder. A process that asks again keeps the lock. On
    a file system without locks the log says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Never closed: the system lets go of the lock with the process. Opened without truncation,
    # since the holder's name is what a second process shows.
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _locks(handle):
            name = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            raise FolderTaken(
                str(folder),
                f"another process works here ({name})",
                fix=f"wait for it, stop it, or choose another {what}",
            )
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
        log.warning("%s cannot be locked (%s): let no second run write there", folder, error)
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())


def _locks(handle: int) -> bool:
    """Twice, since the first attempt may have met a process that only asked (``holder``)."""
    for pause in (0.1, 0.0):
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):
            time.sleep(pause)
    return False


def holder(folder: Path) -> str | None:
    """Who holds ``folder`` now, in words; None where nobody does, or the file system has no locks.

    Not for the process that holds it: closing any handle of the file would end its own lock.
    """
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        # A shared lock, which only a writer's keeps out, for as long as this call.
        fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return os.read(handle, 200).decode(errors="replace").strip()
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
    return None
