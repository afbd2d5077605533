"""A k-means of an array in memory, through the parts that a run is made of."""

import numpy as np
import torch

from clustering.kmeans.lloyd import Lloyd
from clustering.kmeans.passes import Passes
from clustering.kmeans.state import MemoryState
from clustering.neighbours import make_layout
from clustering.points import ArraySource, Points
from clustering.search import unpack_array
from clustering.survey import look
from ovtrain.config.cluster import ClusterConfig
from ovtrain.distributed.context import World

ALONE = World(0, 0, 1, torch.device("cpu"), None)


def quiet(line):
    pass


def points_of(x, spherical=False, policy="refuse"):
    """(points, largest absolute number)."""
    found = look(ArraySource(x), ALONE, quiet)
    bad = found.bad(spherical=spherical, policy=policy)
    return Points(ArraySource(x), ALONE.device, spherical, bad), found.largest


def cluster(x, first=None, memory_gib=2.0, **settings):
    """(state, owners (S,)) of a k-means over float16 rows; ``first``: rows of the first centers."""
    config = ClusterConfig(**{"top": 1, **settings})
    points, largest = points_of(x, config.spherical, config.bad)
    layout = make_layout(ALONE, len(x), config.clusters, x.shape[1], memory_gib, 1)
    passes = Passes(points, layout, config.clusters, config.engine, largest, quiet)
    state = MemoryState(len(x), config.clusters, x.shape[1])
    Lloyd(points, config, passes, state, quiet).run(first)
    # the last pass of the only restart
    ids, _ = unpack_array(state.nearest(state.progress.slot).read(0, len(x)))
    return state, ids


def distinct(centers):
    return len(np.unique(centers, axis=0))
