"""How good a clustering is, as one JSON-able dict; and purity against known classes.

``quality`` reads a label store and its distances in blocks; beside a block it holds a few numbers
per cluster. It returns::

    samples, clusters, top      counts; samples are those that own labels, top the most labels
    labels_per_sample           {"min", "mean", "max"}
    empty                       centers that are no sample's nearest
    size                        {"min", "median", "mean", "max"} of samples per center,
                                "quantiles", "gini" (0: all sizes equal), "largest_share": the
                                share of samples in the largest 1 % of clusters
    size_histogram              {"edges" (n+1), "counts" (n)}: edges 0, 1, 2, 4, 8, ...
    mean_distance               mean distance of a sample to its nearest center
    distance                    of the same: "mean_squared", "quantiles" (percent as text), and a
                                histogram "edges" (33), "counts" (32)
    cluster_distance            quantiles over clusters of the root mean square of that distance
    margin                      {"mean", "edges" (21), "counts" (20)} of 1 - d_1 / d_K, d_K the
                                distance of the last label's center: 0 = all labels equally near

Quantiles of distances are read off bins of a width of 2^-13 of the value; the others are exact.

Purity needs class names, which no teacher ever sees; it only describes a finished clustering.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clustering.agreement import PERMUTED, Contingency
from clustering.label_blocks import Block, LabelBlocks
from ovtrain.data.shards import ShardReader
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import DISTANCES, LabelStore

CLASSED = 1 << 18
"""Samples whose classes are looked up, drawn at random where there are more."""
MARGIN_BINS, DISTANCE_BINS = 20, 32
PERCENTS = (1, 5, 25, 50, 75, 95, 99)
DROPPED_BITS = 10
"""Of a float32's mantissa of 23, before distances are counted."""

Floats = npt.NDArray[np.float64]


def quality(labels: Path) -> dict[str, Any]:
    """Statistics of the label store in ``labels``; keys in the module docstring. Raises
    LabelError."""
    store = LabelBlocks(labels)
    found = _Totals(store.classes)
    for block in store.blocks():
        if not bool(np.isfinite(block.distances).all()):
            raise LabelError(str(store.folder / DISTANCES), "not all are finite")
        found.add(block)
    if not found.samples:
        raise LabelError(str(store.folder), "no sample owns a label", fix="look at skipped.jsonl")
    return found.about()


class _Totals:
    """What is summed over blocks."""

    def __init__(self, clusters: int) -> None:
        self.sizes = np.zeros(clusters, dtype=np.int64)
        self.squares = np.zeros(clusters)
        self.distances = DistanceCounts()
        self.margins = np.zeros(MARGIN_BINS, dtype=np.int64)
        self.edges = np.linspace(0, 1, MARGIN_BINS + 1)
        self.margin = self.distance = 0.0
        self.samples = self.labels = self.most = 0
        self.fewest = 1 << 62

    def add(self, block: Block) -> None:
        owners = block.owners
        if not len(owners):
            return
        counts = block.counts[owners]
        nearest, first = block.ids[block.first], block.distances[block.first].astype(np.float64)
        last = block.distances[block.last].astype(np.float64)
        margin = 1 - np.divide(first, last, out=np.ones_like(first), where=last > 0)
        self.sizes += np.bincount(nearest, minlength=len(self.sizes))
        self.squares += np.bincount(nearest, weights=first**2, minlength=len(self.sizes))
        self.distances.add(block.distances[block.first])
        self.margins += np.histogram(margin, bins=self.edges)[0]
        self.margin += float(margin.sum())
        self.distance += float(first.sum())
        self.samples += len(owners)
        self.labels += len(block.ids)
        self.fewest = min(self.fewest, int(counts.min()))
        self.most = max(self.most, int(counts.max()))

    def about(self) -> dict[str, Any]:
        sizes, samples = self.sizes, self.samples
        own = np.flatnonzero(sizes)
        return {
            "samples": samples,
            "clusters": len(sizes),
            "top": self.most,
            "labels_per_sample": {
                "min": self.fewest,
                "mean": self.labels / samples,
                "max": self.most,
            },
            "empty": len(sizes) - len(own),
            "size": _size(sizes),
            "size_histogram": _size_histogram(sizes),
            "mean_distance": self.distance / samples,
            "distance": {
                "mean_squared": float(self.squares.sum()) / samples,
                **self.distances.about(),
            },
            "cluster_distance": {
                "quantiles": _quantiles(np.sqrt(self.squares[own] / sizes[own]), PERCENTS)
            },
            "margin": {
                "mean": self.margin / samples,
                "edges": self.edges.round(4).tolist(),
                "counts": self.margins.tolist(),
            },
        }


class DistanceCounts:
    """Counts of float32 numbers >= 0 by their leading bits, which are in the numbers' order."""

    def __init__(self) -> None:
        self.counts = np.zeros(1 << (31 - DROPPED_BITS), dtype=np.int64)
        self.least, self.most = np.inf, 0.0

    def add(self, distances: npt.NDArray[np.float32]) -> None:
        """(n,), n at least 1."""
        positive = np.maximum(distances, np.float32(0)) + np.float32(0)  # -0 would be the largest
        bins = positive.view(np.uint32) >> DROPPED_BITS
        self.counts += np.bincount(bins, minlength=len(self.counts))
        self.least = min(self.least, float(positive.min()))
        self.most = max(self.most, float(positive.max()))

    def about(self) -> dict[str, Any]:
        """ "quantiles", and "edges", "counts" of a histogram between the least and the most."""
        bins = np.flatnonzero(self.counts)
        middle = (bins.astype(np.uint32) << DROPPED_BITS) | (1 << (DROPPED_BITS - 1))
        values = middle.view(np.float32).astype(np.float64).clip(self.least, self.most)
        counts = self.counts[bins]
        reached = np.cumsum(counts)
        places = [p / 100 * (reached[-1] - 1) for p in PERCENTS]
        at = np.searchsorted(reached, places, side="right")
        width = (self.most - self.least) or max(self.most, 1.0) * 1e-3
        edges = np.linspace(self.least, self.least + width, DISTANCE_BINS + 1)
        drawn, _ = np.histogram(values, bins=edges, weights=counts)
        return {
            "quantiles": {str(p): float(values[i]) for p, i in zip(PERCENTS, at, strict=True)},
            "edges": edges.tolist(),
            "counts": drawn.astype(np.int64).tolist(),
        }


def _quantiles(values: npt.NDArray[Any], percents: Sequence[int]) -> dict[str, float]:
    found = np.percentile(values, percents).tolist()
    return {str(p): value for p, value in zip(percents, found, strict=True)}


def _size(sizes: npt.NDArray[np.int64]) -> dict[str, Any]:
    ranked = np.sort(sizes)
    rank = np.arange(1, len(ranked) + 1)
    samples = int(ranked.sum())
    gini = 2 * float((rank * ranked.astype(np.float64)).sum()) / (len(ranked) * samples)
    return {
        "min": int(ranked[0]),
        "median": float(np.median(ranked)),
        "mean": float(ranked.mean()),
        "max": int(ranked[-1]),
        "quantiles": _quantiles(ranked, PERCENTS),
        "gini": gini - (len(ranked) + 1) / len(ranked),
        "largest_share": float(ranked[-max(1, len(ranked) // 100) :].sum() / samples),
    }


def _size_histogram(sizes: npt.NDArray[np.int64]) -> dict[str, list[int]]:
    edges = [0, 1]
    while edges[-1] <= sizes.max():
        edges.append(2 * edges[-1])
    counts, _ = np.histogram(sizes, bins=edges)
    return {"edges": edges, "counts": counts.tolist()}


def read_classes(path: Path | str) -> tuple[list[str], dict[str, int]]:
    """Names of the classes, and the class of each file stem. Raises LabelError."""
    try:
        about: dict[str, Any] = json.loads(Path(path).read_text())
        names, labels = [str(name) for name in about["classes"]], dict(about["labels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelError(str(path), f"not a classes file ({error})") from error
    if not all(isinstance(c, int) and 0 <= c < len(names) for c in labels.values()):
        raise LabelError(str(path), "labels that are no class", allowed=f"0 to {len(names) - 1}")
    return names, labels


def purity(labels: LabelStore, reader: ShardReader, classes_file: Path | str) -> dict[str, Any]:
    """Purity and NMI of nearest clusters against known classes.

    ``classes_file``: {"classes": [name], "labels": {file stem: class}}. Small clusters are pure by
    chance, and so are those that gather the frames of one file; the same numbers with the classes
    permuted between files stand beside them. Raises LabelError when no sample is named in the file.
    """
    _, known = read_classes(classes_file)
    stems: list[str] = []
    owners: list[int] = []
    rng = np.random.default_rng(0)
    many = len(reader) > CLASSED
    drawn = np.sort(rng.choice(len(reader), CLASSED, replace=False)) if many else range(len(reader))
    for i in map(int, drawn):
        ids = labels.lookup(reader.hashes[i])
        stem = Path(reader.meta(i).media).stem
        if len(ids) and stem in known:
            stems.append(stem)
            owners.append(int(ids[0]))
    if not stems:
        raise LabelError(str(classes_file), "names none of the samples that have labels")
    files, file = np.unique(stems, return_inverse=True)
    cluster, class_of = np.array(owners), np.array([known[stem] for stem in files.tolist()])
    found = Contingency.of(cluster, class_of[file])
    chance = [Contingency.of(cluster, rng.permutation(class_of)[file]) for _ in range(PERMUTED)]
    return {
        "samples": len(stems),
        "purity": found.purity,
        "purity_permuted": float(np.mean([table.purity for table in chance])),
        "nmi": found.nmi,
        "nmi_permuted": float(np.mean([table.nmi for table in chance])),
    }
