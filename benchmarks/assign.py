"""Top-10 nearest centers against faiss's flat float32 search.

    python benchmarks/assign.py [--samples 50000] [--clusters 10000] [--width 1024] [--rounds 5]

Two kinds of data. ``hard``: points and centers are random unit vectors, so that many centers are
nearly as near as the tenth; ``features``: points around places, centers among them
(``feature_data.py``). On each: recall@10 against float64 on 1,000 points; then points per second of
ours (``gemm``: bfloat16 candidates, float32 decides) and of faiss's ``knn`` on the same points as
float32, interleaved. And FAISS's inverted file and graph, widened until recall@10 is 0.99: what a
run would be told of them, measured on 2,048 held-out points against ours on the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feature_data import centers_of, make_store
from measure import interleaved, line
from torch import Tensor
from torch.nn.functional import normalize

from clustering.approximate import ApproximateSearch, recall_of, tune
from clustering.points import ArraySource, Points
from clustering.search import GemmSearch, faiss_module
from ovtrain.schema.errors import ConfigError

TOP, CHECKED, AT_ONCE = 10, 1_000, 8_192


def hard(samples: int, clusters: int, width: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(samples, width, generator=rng), dim=1).half()
    return x, normalize(torch.randn(clusters, width, generator=rng), dim=1)


def features(samples: int, clusters: int, width: int) -> tuple[Tensor, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), samples, width, clusters)
        return torch.from_numpy(store.array()), centers_of(store, clusters)


def truth(x: Tensor, centers: Tensor) -> np.ndarray:
    """(n, 10) by direct differences in float64 among the 200 that a float64 product puts first."""
    wide, table = x.double(), centers.double()
    score = wide @ table.T - table.square().sum(dim=1) / 2
    near = score.topk(min(200, len(table)), dim=1).indices
    squared = (wide[:, None] - table[near]).square().sum(dim=2)
    return near.gather(1, squared.argsort(dim=1)[:, :TOP]).numpy()


def compare(x: Tensor, centers: Tensor, rounds: int) -> dict[str, Any]:
    faiss = faiss_module()
    wide, table = x.float().numpy(), centers.numpy()
    ours = GemmSearch(centers)

    def gemm() -> np.ndarray:
        parts = [ours.nearest(part, TOP)[0].numpy() for part in x.split(AT_ONCE)]
        return np.concatenate(parts)

    variants: dict[str, Callable[[], np.ndarray]] = {
        "gemm": gemm,
        "faiss flat": lambda: faiss.knn(wide, table, TOP)[1],
    }
    exact = truth(x[:CHECKED], centers)
    recall = {name: recall_of(call()[:CHECKED], exact) for name, call in variants.items()}
    times = interleaved(variants, warm_up=0, rounds=rounds)
    per_second = {n: round(1e3 * len(x) / t["median_ms"]) for n, t in times.items()}
    return {
        "recall": recall,
        "points_per_s": per_second,
        "ours_over_faiss": round(per_second["gemm"] / per_second["faiss flat"], 2),
        "searched_again": ours.repeated,
        "variants": times,
        "approximate": {kind: approximate(kind, x, centers) for kind in ("ivf", "hnsw")},
    }


def approximate(kind: str, x: Tensor, centers: Tensor) -> dict[str, Any]:
    began = time.perf_counter()
    search = ApproximateSearch(kind, centers, seed=0)
    built = round(time.perf_counter() - began, 1)
    points = Points(ArraySource(x.numpy()), x.device, False, np.empty(0, np.int64))
    try:
        tuned = tune(search, points, TOP, 0.99, 0, lambda _: None)
    except ConfigError as error:
        return {"built_s": built, "not reached": error.found}
    times_as_fast = round(tuned.exact_s / tuned.approximate_s, 2)
    return {"built_s": built, "times_as_fast_as_ours": times_as_fast, **tuned.about()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--clusters", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    shape = (given.samples, given.clusters, given.width)
    found = {kind.__name__: compare(*kind(*shape), given.rounds) for kind in (hard, features)}
    about = {"samples": shape[0], "clusters": shape[1], "width": shape[2], "rounds": given.rounds}
    print(line("assign", **about, **found))


if __name__ == "__main__":
    main()
