"""The three inner loops of the codec room: native where the extension is built, numpy otherwise.

    patch_means(values, rows, columns)          area means over the cells of a fractional grid
    block_motion(current, reference, block, radius)   full-search block matching
    compensate(reference, motion)               the motion-compensated prediction of a picture

Each has a numpy reference here (``*_reference``) that gives the same result as ``native/`` does;
the means agree to float32 rounding, the two others bit for bit. The choice is made once, at import,
and a missing extension is logged once. Vectors are (x, y) and point from the block in the current
picture to its reference, as in HEVC (ITU-T H.265, 8.5.3).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from ovtrain.schema.errors import CodecError

try:
    from ovtrain.codec import _native  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    _native = None
    logging.getLogger(__name__).warning(
        "the native extension is absent; block matching and patch means run in numpy, "
        "many times slower. Install ovtrain with a C++17 compiler to have it"
    )


def has_native() -> bool:
    """Whether the extension is built."""
    return _native is not None


def native() -> Any:
    """The extension module. Raises CodecError where it is not built."""
    if _native is None:
        raise CodecError(
            "ovtrain.codec._native", "is not built", fix="install ovtrain with a C++17 compiler"
        )
    return _native


Luma = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
Edges = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int16]


def patch_means(values: FloatArray, rows: Edges, columns: Edges) -> FloatArray:
    """(H, W) -> (h, w) means over cells with edges rows (h+1,) and columns (w+1,) in pixels.

    A pixel that an edge cuts counts by the share that lies inside, so that one call crops,
    resamples by area and averages over patches. Cells outside the picture are 0.
    """
    if _native is None:
        return patch_means_reference(values, rows, columns)
    return _native.patch_means(np.ascontiguousarray(values, np.float32), rows, columns)


def patch_means_reference(values: FloatArray, rows: Edges, columns: Edges) -> FloatArray:
    """``patch_means`` in numpy."""
    down = _overlap(rows, values.shape[0])
    across = _overlap(columns, values.shape[1])
    sums = down @ values.astype(np.float64) @ across.T
    area = np.outer(down.sum(axis=1), across.sum(axis=1))
    return np.divide(sums, area, out=np.zeros_like(sums), where=area > 0).astype(np.float32)


def _overlap(edges: Edges, lines: int) -> Edges:
    """(n, lines) share of each unit-wide line that lies in each cell."""
    start = np.arange(lines)
    low = np.maximum(edges[:-1, None], start)
    return np.clip(np.minimum(edges[1:, None], start + 1) - low, 0, None)


def block_motion(current: Luma, reference: Luma, block: int, radius: int) -> IntArray:
    """(ceil(H/block), ceil(W/block), 2) whole-pixel vectors with the least absolute difference.

    All displacements within ``radius`` are tried, shortest first; a tie keeps the shorter, so still
    and flat blocks stay at zero. Outside the reference its edge pixels repeat.
    """
    if _native is None:
        return block_motion_reference(current, reference, block, radius)
    return _native.block_motion(
        np.ascontiguousarray(current), np.ascontiguousarray(reference), block, radius
    )


def block_motion_reference(current: Luma, reference: Luma, block: int, radius: int) -> IntArray:
    """``block_motion`` in numpy: one difference picture per displacement."""
    height, width = current.shape
    past = np.pad(reference, radius, mode="edge").astype(np.int32)
    starts = (np.arange(0, height, block), np.arange(0, width, block))
    best = np.full((len(starts[0]), len(starts[1])), np.iinfo(np.int64).max)
    motion = np.zeros((*best.shape, 2), np.int16)
    for x, y in _spiral(radius):
        shifted = past[radius + y : radius + y + height, radius + x : radius + x + width]
        difference = np.abs(shifted - current)
        cost = np.add.reduceat(np.add.reduceat(difference, starts[0], 0), starts[1], 1)
        motion[cost < best] = (x, y)
        best = np.minimum(best, cost)
    return motion


def _spiral(radius: int) -> list[tuple[int, int]]:
    side = range(-radius, radius + 1)
    return sorted(
        ((x, y) for y in side for x in side), key=lambda step: step[0] ** 2 + step[1] ** 2
    )


def compensate(reference: Luma, motion: npt.NDArray[Any]) -> Luma:
    """(H, W) prediction from ``reference`` by (ceil(H/4), ceil(W/4), 2) int16 quarter-pel vectors.

    Bilinear at fractions (the standards' longer filters differ by a level or two on texture);
    outside the reference its edge pixels repeat.
    """
    if _native is None:
        return compensate_reference(reference, motion)
    return _native.compensate(
        np.ascontiguousarray(reference), np.ascontiguousarray(motion, np.int16)
    )


def compensate_reference(reference: Luma, motion: npt.NDArray[Any]) -> Luma:
    """``compensate`` in numpy: four gathers."""
    height, width = reference.shape
    vectors = spread(motion.astype(np.int32), 4, height, width)
    rows = np.arange(height)[:, None] + (vectors[..., 1] >> 2)
    columns = np.arange(width) + (vectors[..., 0] >> 2)
    fx, fy = vectors[..., 0] & 3, vectors[..., 1] & 3
    total = np.full((height, width), 8, np.int32)
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (fy if down else 4 - fy) * (fx if across else 4 - fx)
        picked = (rows + down).clip(0, height - 1), (columns + across).clip(0, width - 1)
        total += weight * reference[picked]
    return (total >> 4).astype(np.uint8)


def spread(blocks: npt.NDArray[Any], side: int, height: int, width: int) -> npt.NDArray[Any]:
    """(h, w, ...) values of ``side`` x ``side`` blocks -> (height, width, ...), cropped to size."""
    return blocks.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
