"""Edges between samples whose embeddings point the same way: exact, blocked, out of core.

Work is n^2 F / 2 multiplications on the threads of numpy's BLAS: minutes for 10^5 rows of 1,024,
days for 10^7. For millions of rows search in an approximate index (FAISS range_search, say) and
bring its pairs as an .npy file of (E, 2) integers. Raises DuplicateError.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import DuplicateError

ROWS = 2048
"""Rows of a block; a product of two blocks is 16 MiB."""

Array = npt.NDArray[Any]


def embedding_edges(features: Array, cosine: float, out: Path) -> int:
    """Write the pairs i < j of ``features`` (n, F) float16 or float32, a memory map say, with a
    cosine of at least ``cosine`` (in float32) to ``out``: (E, 2) int64 .npy. Returns E.

    Rows of zeros have no direction and no edges. Memory: two blocks, their product, its edges.
    """
    if features.ndim != 2 or features.dtype not in (np.float16, np.float32):
        raise DuplicateError(
            "features", f"{features.dtype} {features.shape}", allowed="(n, F) float16 or float32"
        )
    if not 0 < cosine <= 1:
        raise DuplicateError(f"cosine={cosine}", allowed="above 0, up to 1")
    with atomic_open(out) as handle:
        _write_header(handle, 0)
        start, count = handle.tell(), 0
        for edges in _near(features, cosine):
            handle.write(edges.tobytes())
            count += len(edges)
        handle.seek(0)
        _write_header(handle, count)
        assert handle.tell() == start  # numpy leaves room for a growing first axis
    return count


def _near(features: Array, cosine: float) -> Iterator[npt.NDArray[np.int64]]:
    for top in range(0, len(features), ROWS):
        rows = _directions(features, top)
        for left in range(top, len(features), ROWS):
            near = rows @ (rows if left == top else _directions(features, left)).T >= cosine
            pairs = np.argwhere(np.triu(near, 1) if left == top else near)
            if len(pairs):
                yield pairs + np.array([top, left])


def _directions(features: Array, start: int) -> npt.NDArray[np.float32]:
    """A block of rows, each of length 1 or 0."""
    block = np.asarray(features[start : start + ROWS], np.float32)
    lengths = np.linalg.norm(block, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths))
    if len(bad):
        raise DuplicateError(f"features[{start + bad[0]}]", "is not finite")
    lengths[lengths == 0] = 1
    return block / lengths


def _write_header(handle: IO[bytes], rows: int) -> None:
    described = {"descr": "<i8", "fortran_order": False, "shape": (rows, 2)}
    np.lib.format.write_array_header_1_0(handle, described)
