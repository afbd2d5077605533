"""Typed errors a user can act on.

Each message names the file or key, what was found, what is allowed and what to do. The command line
prints the message alone (no traceback) and exits with status 2.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


class OvtrainError(ValueError):
    """Base of every error caused by input rather than by a defect of ovtrain.

    ``where`` is the file or config key, ``found`` what stands there, ``allowed`` what may stand
    there, ``fix`` the next thing to do. Absent parts are left out of the message.
    """

    def __init__(
        self,
        where: str,
        found: str = "",
        *,
        allowed: str = "",
        fix: str = "",
    ) -> None:
        self.where, self.found, self.allowed, self.fix = where, found, allowed, fix
        message = f"{where}: {found}" if found else where
        if allowed:
            message += f"; allowed: {allowed}"
        if fix:
            message += f"; {fix}"
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.where, self.found, self.allowed, self.fix))


def _rebuild(
    kind: type[OvtrainError], where: str, found: str, allowed: str, fix: str
) -> OvtrainError:
    return kind(where, found, allowed=allowed, fix=fix)


PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN)
"""Errors of a storage that may be back in a moment."""


def exit_status(work: Callable[[], int | None]) -> int:
    """Run ``work`` and return its exit status (None = 0).

    2 after one ``error:`` line on stderr where its input is at fault: an OvtrainError, or a path
    that the system refuses. What may pass by itself (``PASSING``) is raised: another start may do.
    """
    try:
        return work() or 0
    except OvtrainError as error:
        line = str(error)
    except OSError as error:
        if error.filename is None or error.errno in PASSING:
            raise
        line = f"{error.filename}: {error.strerror}; check this path and who may write there"
    print(f"error: {line}", file=sys.stderr, flush=True)
    return 2


class ConfigError(OvtrainError):
    """A config key or value is wrong."""


class InputError(OvtrainError):
    """A tensor or a picture given to the encoder breaks a rule."""


class ManifestError(OvtrainError):
    """A manifest is missing, of another version, or disagrees with the files beside it."""


class MediaError(OvtrainError):
    """A media file or a sample's payload cannot be read as what it claims to be."""


class LabelError(OvtrainError):
    """Labels, features or centroids are missing or do not match the shards."""


class CodecError(OvtrainError):
    """A bitstream cannot give the codec signals that were asked for."""


class CheckpointError(OvtrainError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class DuplicateError(OvtrainError):
    """Edges, hashes or features that duplicates are to be found by break a rule."""
