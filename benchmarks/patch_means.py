"""The codec room's native loops against their numpy references, on one frame.

    python benchmarks/patch_means.py [--side 224] [--rounds 20]

``patch_means``   area means of a (side, side) float32 picture over its 14 x 14 patches; ``reshape``
                  is what numpy does best where, as here, no patch border cuts a pixel
``block_motion``  full search of 8 x 8 blocks, reach 7, on (side, side) uint8 luma
One thread on both sides. Results are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported

import numpy as np
from measure import interleaved, line

from ovtrain.codec import kernels

PATCH, BLOCK, RADIUS = 14, 8, 7


def variants(side: int) -> dict[str, Callable[[], np.ndarray]]:
    """Native and numpy runs of both loops on the same fixed picture."""
    rng = np.random.default_rng(0)
    values = rng.random((side, side), dtype=np.float32)
    edges = np.arange(0, side + 1, PATCH, dtype=np.float64)
    luma = rng.integers(0, 256, (side, side), dtype=np.uint8)
    moved = np.roll(luma, (3, -2), axis=(0, 1))
    return {
        "patch_means_native": lambda: kernels.patch_means(values, edges, edges),
        "patch_means_numpy": lambda: kernels.patch_means_reference(values, edges, edges),
        "patch_means_reshape": lambda: values.reshape(side // PATCH, PATCH, -1, PATCH).mean((1, 3)),
        "block_motion_native": lambda: kernels.block_motion(moved, luma, BLOCK, RADIUS),
        "block_motion_numpy": lambda: kernels.block_motion_reference(moved, luma, BLOCK, RADIUS),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3)
    args = parser.parse_args()
    if kernels._native is None:
        sys.exit("error: the native extension is not built; there is nothing to compare")
    runs = variants(args.side)
    np.testing.assert_allclose(runs["patch_means_native"](), runs["patch_means_numpy"](), rtol=1e-5)
    np.testing.assert_array_equal(runs["block_motion_native"](), runs["block_motion_numpy"]())
    found = interleaved(runs, warm_up=args.warm_up, rounds=args.rounds)
    speedups = {
        peer: round(found[peer]["median_ms"] / found[f"{ours}_native"]["median_ms"], 1)
        for ours, peer in (
            ("patch_means", "patch_means_numpy"),
            ("patch_means", "patch_means_reshape"),
            ("block_motion", "block_motion_numpy"),
        )
    }
    print(
        line(
            "patch_means",
            picture=[args.side, args.side],
            patch=PATCH,
            block=BLOCK,
            radius=RADIUS,
            warm_up=args.warm_up,
            rounds=args.rounds,
            variants=found,
            over_native=speedups,
        )
    )


if __name__ == "__main__":
    main()
