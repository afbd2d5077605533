"""How far two partitions of the same samples agree, and two label stores.

Numbers of clusters mean nothing across runs, so all of these are free of them. With n_ij samples
in cell (i, j) of the contingency table, a_i and b_j its sums, n all of them:

    NMI    2 I(A, B) / (H(A) + H(B)), entropies of n_ij / n: 1 = the same partition
    ARI    adjusted Rand index (Hubert and Arabie 1985): pairs of samples together in both, less
           what chance gives; 0 = chance, 1 = the same partition
    purity sum_i max_j n_ij / n

Small clusters agree by chance: beside each number stands its mean over ``PERMUTED`` permutations
of one side. The table is sparse: one entry per cell that is not empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clustering.label_blocks import LabelBlocks
from ovtrain.schema.errors import LabelError

MOST = 1 << 22
"""Samples that two stores are compared on. Keys are hashes: those of the lowest are a fair draw."""
PAIRED = 1 << 20
"""Of these, the samples that pairs are drawn from."""
PAIRS = 1 << 16
PERMUTED = 3

Ids = npt.NDArray[np.integer[Any]]
Rows = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Contingency:
    """Cells that are not empty: counts (n,), row and column (n,) of each; sums of rows and columns,
    all int64."""

    counts: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]

    @classmethod
    def of(cls, a: Ids, b: Ids) -> Contingency:
        """Of two (S,) arrays of ids from 0 on, S at least 1."""
        many = int(b.max()) + 1
        cells, counts = np.unique(a.astype(np.int64) * many + b, return_counts=True)
        row, column = np.divmod(cells, many)
        return cls(counts, row, column, np.bincount(a), np.bincount(b, minlength=many))

    @property
    def nmi(self) -> float:
        both = _entropy(self.rows) + _entropy(self.columns)
        shared = both - _entropy(self.counts)  # I = H(A) + H(B) - H(A, B)
        return 1.0 if both == 0 else max(2 * shared / both, 0.0)

    @property
    def ari(self) -> float:
        cells, rows, columns, all_pairs = (
            _pairs(x)
            for x in (self.counts, self.rows, self.columns, self.counts.sum(keepdims=True))
        )
        if all_pairs == 0:
            return 1.0
        expected, most = rows * columns / all_pairs, (rows + columns) / 2
        return 1.0 if most == expected else (cells - expected) / (most - expected)

    @property
    def purity(self) -> float:
        """Share of samples in the commonest column of their row."""
        best = np.zeros(len(self.rows), dtype=np.int64)
        np.maximum.at(best, self.row, self.counts)
        return float(best.sum() / self.counts.sum())


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def _pairs(counts: npt.NDArray[np.int64]) -> float:
    """Pairs of samples that are together."""
    return float((counts * (counts - 1)).sum()) / 2


def overlap(
    a: Path, b: Path, *, same_centers: bool = False, seed: int = 0, most: int = MOST
) -> dict[str, Any]:
    """Agreement of two label stores on the samples that own labels in both; JSON-able::

        samples                  compared, at most ``most``
        nmi, ari                 of nearest labels; nmi_permuted, ari_permuted
        shared                   of pairs of samples that share a label in one store, the share
                                 that shares one in the other (mean of both ways; None where no two
                                 samples share a label); shared_permuted
        same                     with ``same_centers``, the share of samples whose nearest label is
                                 the same; same_permuted
        top                      and the mean of |labels of a in labels of b| / K; top_permuted

    Raises LabelError where they have no sample in common.
    """
    first, second = _joined(a, b, most)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(second)) for _ in range(PERMUTED)]

    def measured(right: Rows) -> dict[str, float | None]:
        table = Contingency.of(first[:, 0], right[:, 0])
        found: dict[str, float | None] = {"nmi": table.nmi, "ari": table.ari}
        found["shared"] = _shared(first[:PAIRED], right[:PAIRED], seed)
        if same_centers:
            found["same"] = float((first[:, 0] == right[:, 0]).mean())
            found["top"] = _same_labels(first[:PAIRED], right[:PAIRED])
        return found

    found = measured(second)
    chance = [measured(second[order]) for order in orders]
    permuted = {f"{name}_permuted": _mean([c[name] for c in chance]) for name in found}
    return {"samples": len(first), **found, **permuted}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _joined(a: Path, b: Path, most: int) -> tuple[Rows, Rows]:
    """(n, K) labels of the samples that own some in both stores, -1 where they own fewer."""
    (left_keys, left), (right_keys, right) = (_labelled(folder, most) for folder in (a, b))
    _, at_left, at_right = np.intersect1d(
        left_keys, right_keys, assume_unique=True, return_indices=True
    )
    if not len(at_left):
        fix = "compare runs over the same shards"
        raise LabelError(str(a), f"has no labelled sample in common with {b}", fix=fix)
    return left[at_left], right[at_right]


def _labelled(folder: Path, most: int) -> tuple[npt.NDArray[np.uint64], Rows]:
    """keys (n,) and labels (n, K) of the first ``most`` samples, as far as they own labels."""
    keys: list[npt.NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    rows: list[Rows] = []
    left = most
    for block in LabelBlocks(folder).blocks(distances=False):
        own = block.owners[block.owners < left]
        keys.append(block.keys[own])
        rows.append(block.padded(max(1, int(block.counts.max())))[own])
        left -= len(block.keys)
        if left <= 0:
            break
    width = max([1, *(row.shape[1] for row in rows)])
    out = np.full((sum(map(len, rows)), width), -1, dtype=np.int32)
    at = 0
    for row in rows:
        out[at : at + len(row), : row.shape[1]] = row
        at += len(row)
    return np.concatenate(keys), out


def _shared(a: Rows, b: Rows, seed: int) -> float | None:
    """Mean of P(pair shares a label in b | shares one in a) and the same the other way."""
    found: list[float] = []
    for here, there in ((a, b), (b, a)):
        one, other = sharing_pairs(here, PAIRS, seed)
        if not len(one):
            return None
        hits = there[one][:, :, None] == there[other][:, None, :]
        found.append(float((hits & (there[one] >= 0)[:, :, None]).any(axis=(1, 2)).mean()))
    return sum(found) / 2


def sharing_pairs(labels: Rows, count: int, seed: int) -> tuple[Ids, Ids]:
    """Row numbers (p,), (p,) of up to ``count`` pairs that share a label: a random label of a
    random sample, and another random owner of it. Labels of one owner give no pair."""
    row, place = np.nonzero(labels >= 0)
    ids = labels[row, place]
    order = np.argsort(ids, kind="stable")
    ids, row = ids[order], row[order]
    rng = np.random.default_rng(seed)
    one = rng.integers(len(ids), size=count)
    low = np.searchsorted(ids, ids[one], side="left")
    owners = np.searchsorted(ids, ids[one], side="right") - low
    kept = owners > 1
    one, low, owners = one[kept], low[kept], owners[kept]
    step = rng.integers(1, owners) if len(one) else owners
    return row[one], row[low + (one - low + step) % owners]


def _same_labels(a: Rows, b: Rows) -> float:
    """Mean share of a row's labels that are also the other's."""
    total = 0.0
    for start in range(0, len(a), PAIRS):
        left, right = a[start : start + PAIRS], b[start : start + PAIRS]
        hits = (left[:, :, None] == right[:, None, :]) & (left >= 0)[:, :, None]
        most = np.maximum((left >= 0).sum(axis=1), (right >= 0).sum(axis=1))
        total += float((hits.any(axis=2).sum(axis=1) / most).sum())
    return total / len(a)
