"""Lloyd's k-means written plainly in float64, and data to try it on."""

import numpy as np


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def distances(x, centers):
    """(S, C) squared, by direct differences."""
    return np.stack([((x - c) ** 2).sum(axis=1) for c in centers], axis=1)


def lloyd(x, centers, iterations, spherical):
    """(centers, objective, owners) after so many updates; a center without points stays."""
    for _ in range(iterations):
        owner = distances(x, centers).argmin(axis=1)
        new = centers.copy()
        for j in np.unique(owner):
            new[j] = x[owner == j].mean(axis=0)
        centers = unit(new) if spherical else new
    squared = distances(x, centers)
    owner = squared.argmin(axis=1)
    return centers, squared.min(axis=1).sum(), owner


def blobs(samples=3000, count=40, width=24, spread=0.25, seed=0, offset=0.0):
    """float16 points around ``count`` places."""
    rng = np.random.default_rng(seed)
    places = rng.standard_normal((count, width)) + offset
    noise = spread * rng.standard_normal((samples, width))
    return (places[rng.integers(count, size=samples)] + noise).astype(np.float16)
