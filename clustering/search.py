"""Nearest centers of points, exactly: one signature, two engines.

``gemm``: candidates by a bfloat16 product, decided in float32 (``ovtrain.ops.nearest``), on any
device. ``faiss``: its flat float32 index, on the CPU, on this rank's GPU, or sharded over all GPUs
of a single process. Both order by the float32 sum of (x - c)^2, ties to the lower id; they may
differ where two centers are nearer to each other's distance than float32 products tell (about
1e-6 of |x|^2 + |c|^2, faiss).

B points, C centers, F width, K neighbours.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ovtrain.ops.nearest import CenterIndex
from ovtrain.schema.errors import ConfigError

NO_KEY = torch.iinfo(torch.int64).max
SPARE = 4
"""Neighbours that faiss is asked for beyond K, since float32 products order the last ones badly."""


class Search(Protocol):
    def nearest(self, points: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """(B, F) -> ids (B, K) int32 and squared distances (B, K) float32, nearest first."""
        ...


class GemmSearch:
    """``repeated`` counts the points whose candidates carried no certificate."""

    def __init__(self, centers: Tensor) -> None:
        self.index = CenterIndex(centers)
        self.repeated = 0

    def nearest(self, points: Tensor, top: int) -> tuple[Tensor, Tensor]:
        found = self.index.nearest(points, top)
        self.repeated += found.repeated
        return found.ids, found.squared


class FaissSearch:
    def __init__(self, centers: Tensor, local_rank: int | None = None) -> None:
        """``local_rank``: the one GPU to use where each rank has its own; None: all there are."""
        faiss = faiss_module()
        self.centers = centers
        index = faiss.IndexFlatL2(centers.shape[1])
        if centers.is_cuda:
            index = on_gpus(faiss, index, local_rank)
        index.add(centers.cpu().numpy())
        self.index = index

    def nearest(self, points: Tensor, top: int) -> tuple[Tensor, Tensor]:
        wide = points.float()
        _, found = self.index.search(wide.cpu().numpy(), min(top + SPARE, len(self.centers)))
        return exact_order(wide, self.centers, torch.from_numpy(found).to(wide.device), top)


def open_search(engine: str, centers: Tensor, local_rank: int | None = None) -> Search:
    """Search in ``centers`` (C, F) float32. Raises ConfigError where faiss is absent."""
    return GemmSearch(centers) if engine == "gemm" else FaissSearch(centers, local_rank)


def faiss_module() -> Any:
    """The faiss package. Raises ConfigError that names the extra when it is absent."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "clustering",
            f"faiss is not installed ({error})",
            fix="pip install ovtrain[cpu] (or ovtrain[gpu] where CUDA is), or engine=gemm",
        ) from error
    return faiss


def on_gpus(faiss: Any, index: Any, local_rank: int | None) -> Any:
    """``index`` on this rank's GPU, or its centers sharded over all GPUs."""
    if not hasattr(faiss, "index_cpu_to_gpus_list"):
        fix = "pip install ovtrain[gpu] instead of ovtrain[cpu], or engine=gemm"
        raise ConfigError("engine=faiss", "this faiss has no GPU part", fix=fix)
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    gpus = list(range(faiss.get_num_gpus())) if local_rank is None else [local_rank]
    return faiss.index_cpu_to_gpus_list(index, co=options, gpus=gpus)


def exact_order(
    points: Tensor, centers: Tensor, candidates: Tensor, top: int
) -> tuple[Tensor, Tensor]:
    """The ``top`` nearest among candidates (B, m) by direct differences in float32; a candidate -1
    is none."""
    keys = torch.empty(candidates.shape, dtype=torch.int64, device=points.device)
    for column in range(candidates.shape[1]):  # (B, F) at a time: (B, m, F) would not fit
        ids = candidates[:, column]
        squared = (points - centers[ids.clamp(min=0)]).square_().sum(dim=1)
        keys[:, column] = torch.where(ids < 0, NO_KEY, pack(ids, squared))
    return unpack(keys.sort(dim=1).values[:, :top])


def pack(ids: Tensor, squared: Tensor) -> Tensor:
    """Ids and squared distances as one int64 key, which orders by distance, then by id."""
    return squared.view(torch.int32).to(torch.int64) << 32 | ids.to(torch.int64)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(ids int32, squared float32)."""
    return (keys & 0xFFFFFFFF).to(torch.int32), (keys >> 32).to(torch.int32).view(torch.float32)


def unpack_array(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As ``unpack``, of an array; a negative key, of a row that takes no part, has id -1."""
    ids = (keys & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    return ids, (keys >> 32).astype(np.int32).view(np.float32)
