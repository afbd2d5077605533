"""Approximate search for the last step, where an exact one is too dear: FAISS's inverted file
(coarse cells of centers, some of which are probed) or HNSW graph.

How many cells are probed (how wide the graph is searched) is set by measuring: doubled until
recall@K on a held-out sample of points reaches what is wanted. What was reached is told, with both
speeds on the same points: an approximate search can be the slower one.

C centers, F width, K labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clustering.kmeans.draw import RowOrder
from clustering.points import Points
from clustering.search import SPARE, GemmSearch, Search, exact_order, faiss_module
from ovtrain.distributed.context import seed_for
from ovtrain.schema.errors import ConfigError

SAMPLE = 2048
"""Held-out points that recall is measured on."""
LINKS, BUILD_WIDTH = 32, 200
"""Of the HNSW graph: links of a node, width of the search that builds it."""
WIDEST = 4096


class ApproximateSearch:
    """``kind`` ivf | hnsw, over all centers (C, F) float32; ``width``: cells probed, or nodes held
    while searching."""

    def __init__(self, kind: str, centers: Tensor, seed: int) -> None:
        self._faiss = faiss_module()
        self.centers, self.kind = centers, kind
        clusters, width = centers.shape
        if kind == "ivf":
            self.cells = max(1, round(2 * clusters**0.5))
            quantizer = self._faiss.IndexFlatL2(width)
            self.index = self._faiss.IndexIVFFlat(quantizer, width, self.cells)
            self.index.cp.seed = seed % 2**31
            self.index.cp.min_points_per_centroid = 1
            self.index.train(centers.cpu().numpy())
            self.most = self.cells
        else:
            self.index = self._faiss.IndexHNSWFlat(width, LINKS)
            self.index.hnsw.efConstruction = BUILD_WIDTH
            self.most = min(WIDEST, clusters)
        self.index.add(centers.cpu().numpy())
        self.set_width(1)

    def set_width(self, width: int) -> None:
        self.width = min(width, self.most)
        if self.kind == "ivf":
            self.index.nprobe = self.width
        else:
            self.index.hnsw.efSearch = self.width

    def nearest(self, points: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """As ``clustering.search.Search``; where fewer than ``top`` are found, the others are
        searched for exactly."""
        wide = points.float()
        asked = min(top + SPARE, len(self.centers))
        _, found = self.index.search(wide.cpu().numpy(), asked)
        candidates = torch.from_numpy(found).to(wide.device)
        ids, squared = exact_order(wide, self.centers, candidates, top)
        few = ((candidates >= 0).sum(dim=1) < top).nonzero()[:, 0]
        if len(few):
            ids[few], squared[few] = self._exact.nearest(points[few], top)
        return ids, squared

    @cached_property
    def _exact(self) -> GemmSearch:
        return GemmSearch(self.centers)


@dataclass(frozen=True)
class Tuned:
    """What measuring gave; times in seconds for ``sample`` points."""

    width: int
    recall: float
    sample: int
    exact_s: float
    approximate_s: float

    def about(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "recall": self.recall,
            "sample": self.sample,
            "exact_per_s": self.sample / self.exact_s,
            "approximate_per_s": self.sample / self.approximate_s,
        }


def tune(
    search: ApproximateSearch, points: Points, top: int, wanted: float, seed: int,
    say: Callable[[str], None],
) -> Tuned:  # fmt: skip
    """Set the search's width to the least power of two that reaches ``wanted`` recall. ConfigError
    where even the widest does not, with what it reaches."""
    order = RowOrder(len(points), seed_for(seed, "held-out points"))
    rows = order(0, min(SAMPLE, len(points)))
    x = points.take(rows[~points.is_bad(rows)])
    exact = GemmSearch(search.centers)
    truth, exact_s = _timed(exact, x, top)
    while True:
        found, approximate_s = _timed(search, x, top)
        recall = recall_of(found, truth)
        if recall >= wanted:
            break
        if search.width == search.most:
            raise ConfigError(
                f"recall={wanted}",
                f"search={search.kind} reaches {recall:.4f}",
                fix="use search=exact, or lower recall",
            )
        search.set_width(2 * search.width)
    say(
        f"{search.kind}: width {search.width}, recall@{top} {recall:.4f}, "
        f"{exact_s / approximate_s:.2f} times as fast as the exact search"
    )
    return Tuned(search.width, recall, len(x), exact_s, approximate_s)


def recall_of(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true neighbours that are found: (B, K) ids each."""
    hits = (found[:, :, None] == truth[:, None, :]).any(axis=2)
    return float(hits.mean())


def _timed(search: Search, x: Tensor, top: int) -> tuple[np.ndarray, float]:
    search.nearest(x[:64], top)  # threads and products are warm
    began = time.perf_counter()
    ids = search.nearest(x, top)[0].cpu().numpy()
    return ids, time.perf_counter() - began
