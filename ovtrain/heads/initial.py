"""How class rows start, independent of the sharding: normal, or the offline centroids."""

# torch.from_numpy is only partly typed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ovtrain.config.head import HeadConfig
from ovtrain.distributed.context import seed_for
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import CentroidStore

INIT_BLOCK = 1024
"""Rows made from one generator."""
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def initial_rows(
    config: HeadConfig, span: range, width: int, seed: int, *, classes: int, centroids: str = ""
) -> Tensor:
    """(len(span), D) rows ``span`` of all ``classes``, on the CPU, as ``config.rows`` stores them.

    ``centroids``: folder of the store that ``config.init: centroids`` reads. Raises LabelError
    where it does not fit.
    """
    out = torch.empty(len(span), width, dtype=TORCH_DTYPES[config.rows])
    store = _fitting(centroids, classes, width) if config.init == "centroids" else None
    for block in range(span.start // INIT_BLOCK, -(-span.stop // INIT_BLOCK)):
        first = max(block * INIT_BLOCK, span.start)
        last = min((block + 1) * INIT_BLOCK, span.stop)
        if store is not None:
            rows = _scaled(store.centroids[first:last], config.init_std)
            sound = rows.isfinite().all(1) & rows.any(1)
            if not sound.all():
                raise LabelError(
                    centroids,
                    f"centroid {first + int((~sound).nonzero()[0])} is zero or not finite",
                    fix="repair empty clusters, or start with head.init=normal",
                )
        else:
            rows = _normal_block(block, width, config.init_std, seed)
            rows = rows[first - block * INIT_BLOCK : last - block * INIT_BLOCK]
        out[first - span.start : last - span.start] = rows
    return out


def _normal_block(block: int, width: int, std: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_for(seed, "head-init", block))
    return torch.empty(INIT_BLOCK, width).normal_(std=std, generator=generator)


def _scaled(centroids: np.ndarray, std: float) -> Tensor:
    """To the length that normal rows have on average. Only directions enter the cosines, but an
    optimizer's steps are long or short beside the row."""
    rows = torch.from_numpy(np.array(centroids, dtype=np.float32))
    return torch.nn.functional.normalize(rows) * (std * math.sqrt(rows.shape[1]))


def _fitting(folder: str, classes: int, width: int) -> CentroidStore:
    store = CentroidStore.read(folder)
    if store.centroids.ndim != 2:
        raise LabelError(folder, f"centroids of shape {store.centroids.shape}", allowed="(C, D)")
    if store.centroids.shape != (classes, width):
        found, teachers = store.centroids.shape
        raise LabelError(
            folder,
            f"{found:,} centroids of width {teachers}",
            allowed=f"{classes:,} (the classes of the labels) of width {width} (the encoder's)",
            fix="start this source's head with head.init=normal, or cluster features of that width",
        )
    return store
