"""How good a clustering is, as one JSON-able dict; and purity against known classes.

``quality`` returns::

    samples, clusters, top      counts
    empty                       centers that are no sample's nearest
    size                        {"min", "median", "mean", "max"} of samples per center
    size_histogram              {"edges" (n+1), "counts" (n)}: edges 0, 1, 2, 4, 8, ...
    mean_distance               mean distance of a sample to its nearest center
    margin                      {"mean", "edges" (21), "counts" (20)} of 1 - d_1 / d_K, d_K the
                                distance of the last label's center: 0 = all labels equally near

Purity needs class names, which no teacher ever sees; it only describes a finished clustering.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clustering.assign import Nearest
from ovtrain.data.shards import ShardReader
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import LabelStore
from ovtrain.schema.sample import key_hash

MARGIN_BINS = 20


def quality(found: Nearest, clusters: int) -> dict[str, Any]:
    """Statistics of an assignment; keys in the module docstring."""
    sizes = np.bincount(found.ids[:, 0], minlength=clusters)
    first, last = found.distance[:, 0], found.distance[:, -1]
    margin = 1 - np.divide(first, last, out=np.ones_like(first), where=last > 0)
    edges = np.linspace(0, 1, MARGIN_BINS + 1)
    counts, _ = np.histogram(margin, bins=edges)
    return {
        "samples": len(found.ids),
        "clusters": clusters,
        "top": found.ids.shape[1],
        "empty": int((sizes == 0).sum()),
        "size": {
            "min": int(sizes.min()),
            "median": float(np.median(sizes)),
            "mean": float(sizes.mean()),
            "max": int(sizes.max()),
        },
        "size_histogram": _size_histogram(sizes),
        "mean_distance": float(first.mean()),
        "margin": {
            "mean": float(margin.mean()),
            "edges": edges.round(4).tolist(),
            "counts": counts.tolist(),
        },
    }


def _size_histogram(sizes: npt.NDArray[np.int64]) -> dict[str, list[int]]:
    edges = [0, 1]
    while edges[-1] <= sizes.max():
        edges.append(2 * edges[-1])
    counts, _ = np.histogram(sizes, bins=edges)
    return {"edges": edges, "counts": counts.tolist()}


def purity(labels: LabelStore, reader: ShardReader, classes_file: Path | str) -> dict[str, Any]:
    """Share of samples whose class is the commonest of their nearest cluster.

    ``classes_file``: {"classes": [name], "labels": {file stem: class}}. Small clusters are pure by
    chance, and so are those that gather the frames of one file; the same number with the classes
    permuted between files stands beside it. Raises LabelError when no sample is named in the file.
    """
    try:
        known: dict[str, int] = json.loads(Path(classes_file).read_text())["labels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelError(str(classes_file), f"not a classes file ({error})") from error
    stems: list[str] = []
    owners: list[int] = []
    for i, key in enumerate(key_hash(reader.keys)):
        ids = labels.lookup(key)
        stem = Path(reader.meta(i).media).stem
        if len(ids) and stem in known:
            stems.append(stem)
            owners.append(int(ids[0]))
    if not stems:
        raise LabelError(str(classes_file), "names none of the samples that have labels")
    files, file = np.unique(stems, return_inverse=True)
    cluster, class_of = np.array(owners), np.array([known[stem] for stem in files.tolist()])
    kind = class_of[file]
    rng = np.random.default_rng(0)
    chance = [majority_share(cluster, rng.permutation(class_of)[file]) for _ in range(5)]
    return {
        "samples": len(stems),
        "purity": majority_share(cluster, kind),
        "purity_permuted": float(np.mean(chance)),
    }


def majority_share(cluster: npt.NDArray[np.int64], kind: npt.NDArray[np.int64]) -> float:
    """Share of samples that belong to the commonest ``kind`` of their ``cluster``."""
    table = np.zeros((cluster.max() + 1, kind.max() + 1), dtype=np.int64)
    np.add.at(table, (cluster, kind), 1)
    return float(table.max(axis=1).sum() / len(cluster))
