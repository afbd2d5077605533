"""What the tests of k-means share."""

import numpy as np

from clustering import arrays
from clustering.arrays import alone
from clustering.points import ArraySource, Points
from clustering.survey import look
from ovtrain.config.cluster import ClusterConfig

ALONE = alone()


def quiet(line):
    pass


def points_of(x, spherical=False, policy="refuse"):
    """(points, largest absolute number)."""
    found = look(ArraySource(x), ALONE, quiet)
    bad = found.bad(spherical=spherical, policy=policy)
    return Points(ArraySource(x), ALONE.device, spherical, bad), found.largest


def cluster(x, first=None, **settings):
    """(what was made, owners (S,)) of a k-means over float16 rows; ``first``: rows of the first
    centers."""
    config = ClusterConfig(**{"top": 1, "memory_gib": 2.0, **settings})
    made = arrays.cluster(x, config, first)
    return made, arrays.nearest(x, made.centers, 1, config)[0][:, 0]


def distinct(centers):
    return len(np.unique(centers, axis=0))
