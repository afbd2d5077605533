"""Arrays on disk that ranks read and write in parts, in place, and do not keep mapped.

A process holds the parts that it asked for, whatever the size of the file. The file is a ``.npy``.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ovtrain.schema.arrays import NOT_AN_ARRAY
from ovtrain.schema.atomic import naming
from ovtrain.schema.errors import LabelError


class ArrayFile:
    """(n, ...) of one dtype."""

    def __init__(
        self, path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...], *, write: bool = True
    ) -> None:
        """Open ``path``, perhaps to ``write``. LabelError where it is not that array."""
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self._stride = self.dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        try:
            with open(path, "rb") as handle:
                np.lib.format.read_magic(handle)
                found = np.lib.format.read_array_header_1_0(handle)
                self._start = handle.tell()
            size = path.stat().st_size
        except NOT_AN_ARRAY as error:
            raise LabelError(str(path), f"unreadable ({error})", fix=_fix(path)) from error
        whole = size == self._start + self._stride * shape[0]
        if found != (shape, False, self.dtype) or not whole:
            allowed = f"{self.dtype} {shape}"
            raise LabelError(
                str(path), f"{found[2]} {found[0]}, {size} bytes", allowed=allowed, fix=_fix(path)
            )
        self._mode = os.O_RDWR if write else os.O_RDONLY
        self._descriptor = os.open(path, self._mode)

    @classmethod
    def create(cls, path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
        """A file of zeros, which takes no space until it is written to."""
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": shape,
        }
        with naming(path), open(path, "wb") as handle:
            np.lib.format.write_array_header_1_0(handle, header)
            handle.truncate(handle.tell() + np.dtype(dtype).itemsize * int(np.prod(shape)))

    def read(self, first: int, count: int) -> npt.NDArray[Any]:
        out = np.empty((count, *self.shape[1:]), self.dtype)
        view, at = out.view(np.uint8).reshape(-1).data, self._start + first * self._stride
        while len(view):
            got = os.preadv(self._descriptor, [view], at)
            if not got:
                raise LabelError(str(self.path), "was cut short", fix=_fix(self.path))
            view, at = view[got:], at + got
        return out

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """(n, ...) rows in any order. Mapped for as long as that takes: a page for each row."""
        if not len(rows):
            return np.empty((0, *self.shape[1:]), self.dtype)
        with (
            open(self.path, "rb") as handle,
            mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            whole = np.frombuffer(mapped, self.dtype, offset=self._start).reshape(self.shape)
            found = whole[rows]
            del whole  # or the map could not be closed
        return found

    def write(self, first: int, array: npt.NDArray[Any]) -> None:
        assert array.dtype == self.dtype, (array.dtype, self.dtype)
        assert array.shape[1:] == self.shape[1:], (array.shape, self.shape)
        view = np.ascontiguousarray(array).view(np.uint8).reshape(-1).data
        at = self._start + first * self._stride
        with naming(self.path):
            while len(view):
                put = os.pwrite(self._descriptor, view, at)
                view, at = view[put:], at + put

    def sync(self) -> None:
        with naming(self.path):
            os.fsync(self._descriptor)

    def reopen(self) -> None:
        """What other hosts wrote before is seen from here on: NFS promises it of opened files."""
        os.close(self._descriptor)
        self._descriptor = os.open(self.path, self._mode)

    def close(self) -> None:
        os.close(self._descriptor)


def _fix(path: Path) -> str:
    return f"remove {path.parent} and start again"
