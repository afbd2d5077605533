"""FAISS k-means: features (S, F) -> CentroidStore (C, F) float32. faiss is imported here only.

Deterministic from the seed. At most ``MAX_PER_CENTER`` samples per center are used to train, drawn
from the seed. Errors: ConfigError where faiss is absent, a count does not fit, or a feature is not
finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ovtrain.schema.errors import ConfigError, LabelError
from ovtrain.schema.features import FeatureStore
from ovtrain.schema.labels import CentroidStore

MIN_PER_CENTER = 4
MAX_PER_CENTER = 256
REFILLS = 5
RESTARTS, RESTARTS_UP_TO = 5, 1024
"""Small problems take the best of so many starts; in large ones local optima matter little."""

Floats = npt.NDArray[np.float32]


def faiss_module() -> Any:
    """The faiss package. Raises ConfigError that names the extra when it is absent."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "clustering",
            f"faiss is not installed ({error})",
            fix="pip install ovtrain[cpu] (or ovtrain[gpu] where CUDA is)",
        ) from error
    return faiss


def check_clusters(clusters: int, samples: int) -> None:
    """Raise ConfigError where there are fewer than ``MIN_PER_CENTER`` samples per center."""
    most = samples // MIN_PER_CENTER
    if not 0 < clusters <= most:
        fix = f"set clusters={most} or lower" if most else "add samples"
        raise ConfigError(
            f"clusters={clusters}",
            f"{samples} samples with features",
            allowed=f"at least {MIN_PER_CENTER} samples per cluster, so 1 to {most}",
            fix=fix,
        )


def kmeans(
    features: FeatureStore, clusters: int, iterations: int, seed: int, *, spherical: bool = False
) -> CentroidStore:
    """Cluster centers of ``features``; ``spherical`` keeps the centers on the unit sphere."""
    samples, width = len(features), features.width
    check_clusters(clusters, samples)
    faiss = faiss_module()
    points = _training_points(features, clusters, seed)
    engine = faiss.Kmeans(
        width,
        clusters,
        niter=iterations,
        seed=seed,
        spherical=spherical,
        nredo=RESTARTS if clusters <= RESTARTS_UP_TO else 1,
        min_points_per_centroid=1,
        max_points_per_centroid=MAX_PER_CENTER,
    )
    engine.train(points)
    centroids = np.array(engine.centroids, dtype=np.float32).reshape(clusters, width)
    return CentroidStore(_refill(points, centroids, faiss), features.teacher)


def _training_points(features: FeatureStore, clusters: int, seed: int) -> Floats:
    samples = len(features)
    rows: Any = slice(None)
    if samples > clusters * MAX_PER_CENTER:
        drawn = np.random.default_rng(seed).permutation(samples)[: clusters * MAX_PER_CENTER]
        rows = np.sort(drawn)
    points = np.ascontiguousarray(features.array()[rows], dtype=np.float32)
    if not np.isfinite(points).all():
        raise LabelError("features", "not all are finite", fix="compute the features again")
    return points


def _refill(points: Floats, centroids: Floats, faiss: Any) -> Floats:
    """Move centers that own no sample onto the samples worst served by theirs.

    Identical samples can leave a center without any; a few rounds settle all that can be settled.
    """
    for _ in range(REFILLS):
        distance, owner = faiss.knn(points, centroids, 1)
        empty = np.flatnonzero(np.bincount(owner[:, 0], minlength=len(centroids)) == 0)
        worst = np.argsort(-distance[:, 0], kind="stable")[: len(empty)]
        worst = worst[distance[worst, 0] > 0]
        if not len(worst):
            break
        centroids[empty[: len(worst)]] = points[worst]
    return centroids
