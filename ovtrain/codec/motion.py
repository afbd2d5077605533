"""Two reference lists in quarter pixels -> one vector field in pixels, camera motion removed.

    motion_field(signals, config) -> (h4, w4, 2) float32 (x, y) in pixels, 0 where a block has none

Vectors point from the current block to its reference. A reference in the future turns them round,
so list vectors are first brought to one sense (towards the past) and, with
``per_reference_distance``, divided by the distance in pictures where the origin knows it: a vector
over three frames is not three times the speed. An unknown distance counts as one picture, back for
list 0 and ahead for list 1.

Camera compensation (paper table 8): ``median`` subtracts the median vector of the blocks that have
one. Where fewer than ``MIN_SHARE`` of a frame's blocks do (a cut, mostly intra), their median says
more about an object than about the camera, and nothing is subtracted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ovtrain.codec.bitstream import UNKNOWN_DELTA, CodecSignals
from ovtrain.config.prepare import EnergyConfig

MIN_SHARE = 0.25

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def motion_field(signals: CodecSignals, config: EnergyConfig) -> FloatArray:
    """(h4, w4, 2) float32 vectors in pixels, lists joined and camera motion removed."""
    field, used = join_lists(signals, config.lists, config.per_reference_distance)
    return remove_camera(field, used) if config.camera == "median" else field


def join_lists(
    signals: CodecSignals, lists: str, per_reference_distance: bool
) -> tuple[FloatArray, Mask]:
    """(h4, w4, 2) vectors in pixels and (h4, w4) which blocks have one.

    ``lists``: l0 | l1 take one list; max the longer vector; sum both.
    """
    used = signals.reference_delta != 0
    if lists == "l0" or (lists != "l1" and not used[..., 1].any()):
        return _towards_past(signals, 0, per_reference_distance), used[..., 0]
    later = _towards_past(signals, 1, per_reference_distance)
    if lists == "l1":
        return later, used[..., 1]
    earlier = _towards_past(signals, 0, per_reference_distance)
    if lists == "sum":
        return earlier + later, used.any(axis=2)
    longer = (later**2).sum(axis=2) > (earlier**2).sum(axis=2)
    return np.where(longer[..., None], later, earlier), used.any(axis=2)


def _towards_past(signals: CodecSignals, index: int, per_distance: bool) -> FloatArray:
    delta = signals.reference_delta[..., index].astype(np.float32)
    delta[delta == UNKNOWN_DELTA] = 1 if index == 0 else -1
    delta[delta == 0] = 1
    if not per_distance:
        delta = np.sign(delta)
    return np.divide(signals.motion[:, :, index], 4 * delta[..., None], dtype=np.float32)


def remove_camera(field: FloatArray, used: Mask) -> FloatArray:
    """``field`` less the median vector of its used blocks; unused blocks stay 0."""
    vectors = field[used]
    if len(vectors) < max(1, MIN_SHARE * used.size):
        return field
    vectors = np.sort(vectors, axis=0)
    camera = (vectors[(len(vectors) - 1) // 2] + vectors[len(vectors) // 2]) / np.float32(2)
    return (field - camera) * used[..., None]
