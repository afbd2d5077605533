"""What numpy raises of files that are not the arrays they claim to be."""

from __future__ import annotations

import struct
import zlib
from tokenize import TokenError
from zipfile import BadZipFile

NOT_AN_ARRAY = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError),
    *(SyntaxError, TokenError, RecursionError, struct.error),
    Warning,  # where warnings are errors
)
"""Of ``.npy``, whose header is Python."""
NOT_ARRAYS = (*NOT_AN_ARRAY, BadZipFile, NotImplementedError, RuntimeError, zlib.error)
"""Of ``.npz``, a zip archive of them."""
