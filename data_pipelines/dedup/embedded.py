"""Samples of a source whose embeddings are near: a list of duplicates, for `repair --drop`.

    python -m data_pipelines.dedup.embedded SHARDS --features FOLDER --cosine 0.95 --out LIST
    python -m data_pipelines.dedup.embedded SHARDS --edges FILE ... --out LIST

FOLDER: a feature store of these shards, as `ovtrain cluster` writes it; all pairs are compared, so
that this suits up to some 100,000 samples. FILE: .npy of (E, 2) sample numbers in shard order, of
any number of pairs, from an approximate index say. LIST: a .jsonl of {"file", "duplicate_of"}.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from data_pipelines.dedup.duplicates import find_duplicates
from data_pipelines.dedup.embeddings import embedding_edges
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import DuplicateError, LabelError, exit_status
from ovtrain.schema.features import FeatureStore
from ovtrain.schema.manifest import ShardIndex, ShardManifest
from ovtrain.schema.sample import key_hash


def duplicates(
    shards: Path, features: Path | None, cosine: float, edges: list[Path]
) -> list[tuple[str, str]]:
    """(key, key of the first of its kind) of the samples that can go. Raises DuplicateError,
    LabelError, ManifestError."""
    keys = _keys(shards)
    with tempfile.TemporaryDirectory() as folder:
        if features is not None:
            edges = [*edges, Path(folder) / "near.npy"]
            embedding_edges(_features(features, shards, keys), cosine, edges[-1])
        none = np.zeros((len(keys), 1), np.uint64)
        labels = find_duplicates(None, none, np.zeros(len(keys), bool), 0, edges)
    found = np.flatnonzero(labels != np.arange(len(labels)))
    return [(keys[i], keys[labels[i]]) for i in found.tolist()]


def _keys(shards: Path) -> list[str]:
    names = [shard.name for shard in ShardManifest.read(shards).shards]
    return [k for n in names for k in ShardIndex.read((shards / n).with_suffix(".npz")).keys]


def _features(folder: Path, shards: Path, keys: list[str]) -> np.ndarray:
    store, manifest = FeatureStore(folder), ShardManifest.read(shards)
    same = store.fingerprint == manifest.fingerprint and len(store.keys) == len(keys)
    if not (same and np.array_equal(store.keys, key_hash(keys))):
        fix = "make features of these shards with `ovtrain cluster`"
        raise LabelError(str(folder), "features of other shards, or not of all samples", fix=fix)
    return store.array()


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 2 on an error of the user."""
    parser = argparse.ArgumentParser(prog="data_pipelines.dedup.embedded", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shards", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--cosine", type=float, default=0.95)
    parser.add_argument("--edges", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)

    def work() -> None:
        if args.features is None and not args.edges:
            raise DuplicateError("duplicates", "nothing to tell them by", fix="give --features")
        found = duplicates(args.shards, args.features, args.cosine, args.edges)
        with atomic_open(args.out, "w") as handle:
            for key, of in found:
                handle.write(json.dumps({"file": key, "duplicate_of": of}) + "\n")
        fix = f"`ovtrain data repair {args.shards} --drop {args.out}` leaves them out"
        print(f"{args.out}: {len(found)} duplicates; {fix}")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
