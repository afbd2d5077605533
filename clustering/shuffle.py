"""The control run's labels: the same label rows, dealt to other samples.

``python -m clustering.shuffle LABELS_DIR --out DIR --seed N`` reads a LabelStore and writes one
with the same keys, rows and class frequencies, the rows permuted between the samples that own
labels. A sample without labels keeps none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ovtrain.schema.errors import exit_status
from ovtrain.schema.labels import LabelStore


def shuffled(store: LabelStore, seed: int) -> LabelStore:
    """``store`` with its non-empty label rows permuted between samples."""
    counts = np.diff(store.offsets)
    owners = np.flatnonzero(counts)
    giver = np.arange(len(counts))
    giver[owners] = np.random.default_rng(seed).permutation(owners)
    offsets = np.concatenate([[0], np.cumsum(counts[giver])]).astype(np.int64)
    rows = [store.ids[store.offsets[g] : store.offsets[g + 1]] for g in giver]
    ids = np.concatenate([*rows, np.empty(0, dtype=np.int32)]).astype(np.int32)
    return LabelStore(store.keys, offsets, ids, store.classes, store.fingerprint)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m clustering.shuffle", description=__doc__)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args(arguments)

    def work() -> None:
        store = shuffled(LabelStore.read(given.labels), given.seed)
        store.write(given.out)
        print(f"shuffled the labels of {len(store.keys)} samples into {given.out}")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
