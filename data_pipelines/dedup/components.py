"""Components of a graph whose edges stream by: union-find in C++, out of core.

Memory is one parent per node (4 bytes; 8 from 2^32 nodes on) and a chunk of edges, so a billion
edges in files need no memory of their own. A component is named by its smallest member. Raises
DuplicateError where edges are no edges, and where the native extension is not built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ovtrain.schema.errors import DuplicateError

try:
    from data_pipelines import _native  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    _native = None

CHUNK = 1 << 22
"""Edges read at a time: 64 MiB of int64."""
EDGES = "(E, 2) integers, uint32 or int64 best"

Array = npt.NDArray[Any]


def native() -> Any:
    """The extension module. Raises DuplicateError where it is not built."""
    if _native is None:
        raise DuplicateError(
            "data_pipelines._native", "is not built", fix="install ovtrain with a C++17 compiler"
        )
    return _native


class Components:
    """The components of ``nodes`` nodes, joined by all that was added so far.

    Not for several threads at once.
    """

    def __init__(self, nodes: int) -> None:
        if nodes < 0:
            raise DuplicateError(f"nodes={nodes}", allowed="0 or more")
        self._native = native().Components(nodes)

    def add(self, edges: Array | Path) -> None:
        """Join the ends of (E, 2) edges, or of those in an .npy file. None of a chunk with a node
        out of range is added."""
        if isinstance(edges, Path):
            for number, chunk in enumerate(edge_chunks(edges)):
                self._add(chunk, f"{edges}, edges from {number * CHUNK}")
        else:
            self._add(edges, "edges")

    def add_near(self, hashes: Array, nodes: Array, distance: int) -> None:
        """Join the ``nodes`` (m,) whose ``hashes`` (m, k) uint64 differ in at most ``distance`` of
        their 64 k bits."""
        given = np.ascontiguousarray(_checked_hashes(hashes))
        try:
            self._native.add_near(given, np.ascontiguousarray(nodes, np.int64), distance)
        except ValueError as error:
            raise DuplicateError("hashes", str(error)) from None

    def labels(self) -> Array:
        """(nodes,) uint32 or uint64: the smallest member of each node's component."""
        return self._native.labels()

    def _add(self, edges: Array, where: str) -> None:
        try:
            self._native.add(_contiguous(_checked_edges(edges, where)))
        except DuplicateError:
            raise
        except ValueError as error:
            raise DuplicateError(where, str(error), fix="make the edges for these nodes") from None


def components(nodes: int, edges: Iterable[Array | Path]) -> Array:
    """(nodes,) labels of the graph: see ``Components``."""
    found = Components(nodes)
    for part in edges:
        found.add(part)
    return found.labels()


def near_pairs(
    hashes: Array, distance: int, sink: Callable[[Array], object], chunk: int = CHUNK
) -> None:
    """Hand all pairs of hashes (n, k) uint64 that differ in at most ``distance`` bits to ``sink``,
    up to ``chunk`` (E, 2) uint32 edges at a time, the smaller index first.

    Equal hashes are a star: the first of them to each other, and only the first in other pairs. So
    the components are those of all pairs, and the edges fewer than the pairs.
    """
    given = np.ascontiguousarray(_checked_hashes(hashes))
    try:
        native().near_pairs(given, distance, sink, chunk)
    except ValueError as error:
        raise DuplicateError("hashes", str(error)) from None


def edge_chunks(path: Path, edges: int = CHUNK) -> Iterator[Array]:
    """The (E, 2) edges of an .npy file, ``edges`` at a time, through a memory map."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DuplicateError(
            str(path),
            str(error),
            allowed=f"an .npy file of {EDGES}",
            fix="write it with numpy.save",
        ) from None
    if not isinstance(mapped, np.ndarray):
        raise DuplicateError(str(path), "is an archive", allowed=f"an .npy file of {EDGES}")
    _checked_edges(mapped, str(path))
    for start in range(0, len(mapped), edges):
        yield _contiguous(mapped[start : start + edges])


def _checked_edges(edges: Array, where: str) -> Array:
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
        raise DuplicateError(where, f"{edges.dtype} {edges.shape}", allowed=EDGES)
    return edges


def _checked_hashes(hashes: Array) -> Array:
    if hashes.ndim != 2 or hashes.dtype != np.uint64:
        raise DuplicateError("hashes", f"{hashes.dtype} {hashes.shape}", allowed="(n, k) uint64")
    return hashes


def _contiguous(edges: Array) -> Array:
    """In native byte order and one of the three types that the extension reads."""
    narrow = edges.dtype.kind == "u" and edges.dtype.itemsize <= 4
    wide = np.int64 if edges.dtype.kind == "i" else np.uint64
    return np.ascontiguousarray(edges, np.uint32 if narrow else wide)
