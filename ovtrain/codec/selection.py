"""Energies -> the patches a clip keeps: pure functions of their arguments (paper sections 2.1, 8).

    select(energy (T, H, W) uint16, budget, mode) -> Selection(flat (budget,) int64, filled)

Whole frames first: the first frame and, from four frames' worth of budget on, the one nearest the
middle. The rest of the budget goes to the other frames' patches of most energy, over the whole clip
(``global``) or in equal parts (``per_frame``: floor(rest / frames) each, the remainder one patch
each to the frames whose next patch scores highest). Ties break by a fixed hash of the flat index,
never by time.

Patches without energy are never *chosen*. Where a clip has too few others, ``global`` fills up with
patches of uniformly spaced frames; ``filled`` counts the still patches that were kept. Raises
ConfigError where the budget is below one frame or above the clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ovtrain.schema.errors import ConfigError
from ovtrain.schema.grid import PatchGrid

Mode = Literal["global", "per_frame"]
MODES: tuple[Mode, ...] = ("global", "per_frame")

IntArray = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Selection:
    """flat (budget,) int64 patch indices, rising; filled: how many of them carry no energy, the
    whole frames not counted."""

    flat: IntArray
    filled: int


def select(energy: npt.NDArray[np.uint16], budget: int, mode: Mode = "global") -> Selection:
    """Exactly ``budget`` different patches of a clip. Raises ConfigError."""
    grid = PatchGrid(*energy.shape)
    if mode not in MODES:
        raise ConfigError(f"selection mode={mode}", "unknown", allowed=", ".join(MODES))
    if not grid.tokens_per_frame <= budget <= grid.size:
        raise ConfigError(
            f"token budget={budget}",
            f"for a clip of {grid.frames} frames of {grid.height}x{grid.width} patches",
            allowed=f"{grid.tokens_per_frame} (one frame) to {grid.size} (the clip)",
        )
    whole = whole_frames(grid, budget)
    others = np.setdiff1d(np.arange(grid.frames), whole)
    flat = np.arange(grid.size).reshape(grid.frames, -1)
    rest = budget - len(whole) * grid.tokens_per_frame
    pick = _per_frame if mode == "per_frame" else _global
    chosen, filled = pick(_keys(energy).reshape(flat.shape)[others], rest)
    kept = np.concatenate([flat[whole].ravel(), flat[others].ravel()[chosen]])
    return Selection(np.sort(kept), filled)


def whole_frames(grid: PatchGrid, budget: int) -> IntArray:
    """Frames kept whole under ``budget``: the first and, where two fit, the one at the middle."""
    both = np.array([0, grid.frames // 2], dtype=np.int64)
    return np.unique(both[: grid.whole_frames(budget)])


def chunk_frames(frames: int, chunks: int, rng: np.random.Generator | None) -> IntArray:
    """(chunks,) one frame of each of ``chunks`` runs of floor(frames / chunks) frames.

    Random with ``rng`` (training), the middle one without (evaluation). Raises ConfigError.
    """
    if not 0 < chunks <= frames:
        raise ConfigError(f"chunks={chunks}", f"for {frames} frames", allowed=f"1 to {frames}")
    length = frames // chunks
    inside = np.full(chunks, length // 2) if rng is None else rng.integers(length, size=chunks)
    return np.arange(chunks, dtype=np.int64) * length + inside


def _keys(energy: npt.NDArray[np.uint16]) -> Keys:
    """uint64 sort keys, no two alike: the energy above a hash of the flat index.

    The hash maps 32-bit numbers one to one (odd multipliers, xor shifts), so order is total.
    """
    mixed = np.arange(energy.size, dtype=np.uint32)
    for factor in (0x9E3779B1, 0x85EBCA77):
        mixed = mixed * np.uint32(factor)
        mixed ^= mixed >> np.uint32(15)
    return energy.ravel().astype(np.uint64) << np.uint64(32) | mixed


def _largest(keys: Keys, count: int) -> IntArray:
    return np.argpartition(keys, len(keys) - count)[len(keys) - count :] if count else np.arange(0)


def _still(keys: Keys) -> npt.NDArray[np.bool_]:
    return keys >> np.uint64(32) == 0


def _global(keys: Keys, count: int) -> tuple[IntArray, int]:
    """Indices into the ravelled (frames, patches) keys, and how many were filled."""
    still = _still(keys)
    moving = min(count, int(still.size - still.sum()))
    chosen = _largest(keys.ravel(), moving)
    filled = count - moving
    return (np.concatenate([chosen, _fill(keys, still, filled)]) if filled else chosen), filled


def _fill(keys: Keys, still: npt.NDArray[np.bool_], count: int) -> IntArray:
    """``count`` still patches of as few uniformly spaced frames as hold that many."""
    frames = len(keys)
    for number in range(1, frames + 1):
        spaced = (2 * np.arange(number) + 1) * frames // (2 * number)
        held = np.zeros_like(still)
        held[spaced] = still[spaced]
        if held.sum() >= count:
            candidates = np.flatnonzero(held)
            return candidates[_largest(keys.ravel()[candidates], count)]
    raise AssertionError("the budget was checked against the clip")


def _per_frame(keys: Keys, count: int) -> tuple[IntArray, int]:
    """As ``_global``, in equal parts per frame."""
    frames, patches = keys.shape
    if not frames:
        return np.arange(0), 0
    share, remainder = divmod(count, frames)
    order = np.argsort(keys, axis=1)[:, ::-1]
    chosen = [order[:, :share] + patches * np.arange(frames)[:, None]]
    if remainder:
        following = order[:, share] + patches * np.arange(frames)
        chosen.append(following[_largest(keys.ravel()[following], remainder)])
    flat = np.concatenate([part.ravel() for part in chosen])
    return flat, int(_still(keys).ravel()[flat].sum())
