"""Duplicates on one core: components of random edges, near pairs of random hashes.

    python benchmarks/dedup.py [--edges 10000000] [--nodes 5000000] [--hashes 1000000] [--rounds 5]

``components``  (edges, 2) uint32 drawn evenly from the nodes, in memory, joined and labelled. Its
                peer is scipy.sparse.csgraph.connected_components, the building of its matrix
                included; where scipy is absent, labels that sink along edges in numpy until none
                changes. Both partitions are compared before anything is timed.
``near``        seconds to search random hashes, one word (a picture) and four (a clip) each, at the
                default distances and further; ``unlike`` to join 10 tight clusters of as many, and
                hashes whose first word is the same
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported

import numpy as np
import numpy.typing as npt
from measure import interleaved, line

from data_pipelines.dedup import components as dedup
from data_pipelines.dedup.components import Components, components
from data_pipelines.dedup.hashing import CLIP_DISTANCE, PICTURE_DISTANCE

try:
    from scipy.sparse import coo_array  # pyright: ignore[reportMissingImports]
    from scipy.sparse.csgraph import connected_components  # pyright: ignore[reportMissingImports]
except ImportError:
    coo_array = connected_components = None

SEARCHES = ((1, PICTURE_DISTANCE), (1, 8), (4, CLIP_DISTANCE), (4, 32))

Labels = npt.NDArray[np.integer]
Hashes = npt.NDArray[np.uint64]


def by_scipy(nodes: int, edges: Labels) -> Labels:
    assert coo_array is not None
    assert connected_components is not None
    graph = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), (nodes, nodes))
    return connected_components(graph, directed=False)[1]


def by_numpy(nodes: int, edges: Labels) -> Labels:
    """Least labels of both ends, then of the labels' labels, until they stay."""
    labels = np.arange(nodes)
    while True:
        least = labels[edges].min(axis=1)
        sunk = labels.copy()
        for end in (0, 1):
            np.minimum.at(sunk, labels[edges[:, end]], least)
        sunk = np.minimum(sunk, sunk[labels])
        sunk = sunk[sunk]
        if (sunk == labels).all():
            return labels
        labels = sunk


def smallest_members(labels: Labels) -> Labels:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse]


def joined(hashes: Hashes, distance: int) -> dict[str, float]:
    """Seconds and components."""
    start = time.perf_counter()
    found = Components(len(hashes))
    found.add_near(hashes, np.arange(len(hashes)), distance)
    seconds = round(time.perf_counter() - start, 2)
    return {"seconds": seconds, "components": len(np.unique(found.labels()))}


def clusters(rng: np.random.Generator, count: int) -> Hashes:
    """Around 10 centres, up to 8 of 256 bits from them."""
    hashes = rng.integers(0, 2**64, (10, 4), dtype=np.uint64)[rng.integers(0, 10, count)]
    for _ in range(8):
        word, bit = rng.integers(0, 4, count), rng.integers(0, 64, count, dtype=np.uint64)
        hashes[np.arange(count), word] ^= np.uint64(1) << bit
    return hashes


def searches(count: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    found = {}
    for words, distance in SEARCHES:
        hashes = rng.integers(0, 2**64, (count, words), dtype=np.uint64)
        found[f"{words} x 64 bits, within {distance}"] = joined(hashes, distance)
    found["unlike: 10 clusters"] = joined(clusters(rng, count), CLIP_DISTANCE)
    hashes = rng.integers(0, 2**64, (count, 4), dtype=np.uint64)
    hashes[:, 0] = 0
    found["unlike: first word the same"] = joined(hashes, CLIP_DISTANCE)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edges", type=int, default=10_000_000)
    parser.add_argument("--nodes", type=int, default=5_000_000)
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if dedup._native is None:
        sys.exit("error: the native extension is not built; there is nothing to time")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    shape = (args.edges, 2)
    edges = np.random.default_rng(0).integers(0, args.nodes, shape, dtype=np.uint32)
    peer = by_numpy if coo_array is None else by_scipy
    runs: dict[str, Callable[[], Labels]] = {
        "native": lambda: components(args.nodes, [edges]),
        peer.__name__: lambda: peer(args.nodes, edges),
    }
    ours, theirs = (smallest_members(run()) for run in runs.values())
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours, runs["native"]())
    times = interleaved(runs, warm_up=0, rounds=args.rounds)
    print(
        line(
            "dedup",
            edges=args.edges,
            nodes=args.nodes,
            rounds=args.rounds,
            variants=times,
            peer_over_native=round(times[peer.__name__]["min_ms"] / times["native"]["min_ms"], 1),
            hashes=args.hashes,
            near=searches(args.hashes),
        )
    )


if __name__ == "__main__":
    main()
