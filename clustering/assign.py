"""Exact top-K nearest centers of every feature -> LabelStore.

Blocks of features stream past resident centers. S samples, C centers, F width, K labels each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clustering.kmeans import faiss_module
from ovtrain.schema.errors import ConfigError, LabelError
from ovtrain.schema.features import FeatureStore
from ovtrain.schema.labels import CentroidStore, LabelStore
from ovtrain.schema.sample import key_hash

BLOCK = 16_384


@dataclass(frozen=True)
class Nearest:
    """ids (S, K) int32, nearest first; distance (S, K) float32, Euclidean."""

    ids: npt.NDArray[np.int32]
    distance: npt.NDArray[np.float32]


def nearest(features: FeatureStore, centers: CentroidStore, top: int) -> Nearest:
    """The ``top`` nearest centers of every sample.

    Raises LabelError on another teacher's centers.
    """
    clusters, width = centers.centroids.shape
    if top > clusters:
        raise ConfigError(f"top={top}", f"{clusters} centers", fix=f"set top={clusters} or lower")
    if features.teacher != centers.teacher or features.width != width:
        raise LabelError(
            "centroids",
            f"made by {centers.teacher} (width {width})",
            allowed=f"{features.teacher} (width {features.width})",
            fix="cluster again with this teacher",
        )
    faiss = faiss_module()
    points = np.ascontiguousarray(centers.centroids, dtype=np.float32)
    ids = np.empty((len(features), top), dtype=np.int32)
    squared = np.empty(ids.shape, dtype=np.float32)
    for first in range(0, len(ids), BLOCK):
        rows = slice(first, first + BLOCK)
        block = features.array()[rows].astype(np.float32)
        squared[rows], ids[rows] = faiss.knn(block, points, top)
    return Nearest(ids, np.sqrt(squared.clip(min=0)))


def label_store(
    keys: list[str], features: FeatureStore, found: Nearest, classes: int
) -> LabelStore:
    """Labels of every key in ``keys``; a sample without a feature owns none."""
    rows = {int(key): row for row, key in enumerate(features.keys)}
    none = np.empty(0, dtype=np.int32)
    at = [rows.get(int(key), -1) for key in key_hash(keys)]
    labels = [found.ids[row] if row >= 0 else none for row in at]
    return LabelStore.build(keys, labels, classes, features.fingerprint)


def label_distances(
    keys: list[str], features: FeatureStore, found: Nearest
) -> npt.NDArray[np.float32]:
    """(L,) distances of the labels of ``label_store``, in its order."""
    row_of = {int(key): row for row, key in enumerate(features.keys)}
    rows = [row_of[key] for key in np.sort(key_hash(keys)).tolist() if key in row_of]
    return found.distance[rows].reshape(-1)
