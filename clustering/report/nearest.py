"""Which centers a page shows, and the samples nearest to each: two passes over the labels.

S samples, C clusters. What is held: a few numbers per cluster, and the samples that are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clustering.label_blocks import LabelBlocks
from ovtrain.schema.errors import LabelError

SAMPLES = 8
"""Shown of each center."""
NAMED = "named"
SORTS = ("largest", "median-sized", "smallest", "random")

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Center:
    """``why`` it is shown; ``samples``: key and distance of its nearest ones, nearest first."""

    id: int
    size: int
    why: str
    samples: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])


def chosen_centers(
    labels: Path,
    count: int,
    named: Sequence[int] = (),
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[Center]:
    """The ``named`` centers, and ``count`` of those that own samples, as many of each of ``SORTS``.
    Raises LabelError where there is no such center."""
    store = LabelBlocks(labels)
    sizes = np.zeros(store.classes, dtype=np.int64)
    for block in store.blocks(distances=False):
        sizes += np.bincount(block.ids[block.first], minlength=len(sizes))
    for center in named:
        if not 0 <= center < len(sizes):
            allowed = f"0 to {len(sizes) - 1}"
            raise LabelError(f"center {center}", "no such center", allowed=allowed)
    chosen = [Center(center, int(sizes[center]), NAMED) for center in dict.fromkeys(named)]
    chosen += _chosen(sizes, count, seed, set(named))
    if chosen:
        _fill(store, chosen, samples)
    return chosen


def _chosen(sizes: Ids, count: int, seed: int, taken: set[int]) -> list[Center]:
    own = np.setdiff1d(np.flatnonzero(sizes), list(taken))
    ranked = own[np.argsort(-sizes[own], kind="stable")]
    middle = np.argsort(np.abs(np.arange(len(ranked)) - len(ranked) // 2), kind="stable")
    orders = (ranked, ranked[middle], ranked[::-1], np.random.default_rng(seed).permutation(own))
    found: list[Center] = []
    for i, (why, order) in enumerate(zip(SORTS, orders, strict=True)):
        wanted = len(range(i, min(count, len(own)), len(SORTS)))
        seen = {center.id for center in found}
        free = [c for c in order[: count + wanted].tolist() if c not in seen][:wanted]
        found += [Center(c, int(sizes[c]), why) for c in free]
    return found


def _fill(store: LabelBlocks, chosen: list[Center], count: int) -> None:
    """Put the nearest samples of each center, of those whose nearest center it is."""
    slot = np.full(store.classes, -1, dtype=np.int64)
    slot[[center.id for center in chosen]] = np.arange(len(chosen))
    keys, far, at = np.empty(0, np.uint64), np.empty(0, np.float32), np.empty(0, np.int64)
    for block in store.blocks():
        owner = slot[block.ids[block.first]]
        hit = np.flatnonzero(owner >= 0)
        keys = np.concatenate([keys, block.keys[block.owners[hit]]])
        far = np.concatenate([far, block.distances[block.first[hit]]])
        at = np.concatenate([at, owner[hit]])
        order = np.lexsort((keys, far, at))
        rank = np.arange(len(order)) - np.searchsorted(at[order], at[order])
        kept = order[rank < count]
        keys, far, at = keys[kept], far[kept], at[kept]
    for key, distance, place in zip(keys.tolist(), far.tolist(), at.tolist(), strict=True):
        chosen[place].samples.append((key, distance))


def rows_of(hashes: npt.NDArray[np.uint64], wanted: list[int]) -> dict[int, int]:
    """Sample numbers of the keys that are among ``hashes`` (S,)."""
    keys = np.unique(np.array(wanted, dtype=np.uint64))
    found: dict[int, int] = {}
    if not len(keys):
        return found
    for start in range(0, len(hashes), 1 << 20):
        block = hashes[start : start + (1 << 20)]
        at = np.searchsorted(keys, block).clip(max=len(keys) - 1)
        for row in np.flatnonzero(keys[at] == block).tolist():
            found[int(block[row])] = start + row
    return found
