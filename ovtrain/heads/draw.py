"""Which class rows a step uses: a counter-based function of (seed, step, head, global row id).

Neither the world size nor the sharding enters, so ranks agree without a word, and a resumed step
draws what it drew before. All of it happens on the host, in numpy: no device is waited for, and a
device that works through the queue of the last step never sees it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ovtrain.ops.class_kernels import native

Ids = npt.NDArray[np.int64]
UNIT = 2**53


def draw_rows(lo: int, hi: int, seed: int, rate: float, always: Ids) -> Ids:
    """Sorted global ids of the rows of [lo, hi) to use: each with probability ``rate``, and the
    sorted ``always``, which lie in the range. Sources of randomness: ``hash_rows``."""
    if rate >= 1:
        return np.arange(lo, hi, dtype=np.int64)
    if (extension := native()) is not None:
        return extension.draw(lo, hi, seed, int(rate * UNIT), always)
    ids = np.arange(lo, hi, dtype=np.int64)
    chosen = hash_rows(ids, seed) < int(rate * UNIT)
    chosen[always - lo] = True
    return ids[chosen]


def hash_rows(ids: Ids, seed: int) -> npt.NDArray[np.uint64]:
    """Ids -> uniform 53-bit numbers: splitmix64 (Steele et al., 2014) of id and seed."""
    x = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(11)


def distinct(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """(B, l) labels, -1 where there is none -> each row sorted, repeats replaced by -1."""
    found = np.sort(labels, axis=1)
    found[:, 1:][found[:, 1:] == found[:, :-1]] = -1
    return found


def drawn_positives(labels: npt.NDArray[np.int32], count: int, seed: int) -> npt.NDArray[np.bool_]:
    """(B, l) distinct labels -> which of them take part in the step: all, or the ``count`` of each
    sample that come first in an order of all classes which the seed gives."""
    there = labels >= 0
    if count == 0 or count >= labels.shape[1]:
        return there
    keys = np.where(there, hash_rows(labels.astype(np.int64), seed), np.uint64(UNIT))
    ranks = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1)
    return there & (ranks < count)
