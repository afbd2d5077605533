"""The class-sharded sampled head (paper eq. 9, r = 0.1): millions of centers, a slice per rank.

Per step a share ``r`` of all global rows is drawn, shared by the batch, plus every positive of the
global batch; a sample's own positives are never its negatives. The draw is a counter-based function
of (seed, head, step, global row id), so neither the world size nor the sharding changes it.

The head lives outside the backend: it takes embeddings that were cut from the graph, gives the
global-mean loss and leaves dL/d(embedding) on them (see ``engine/step.py`` and
``docs/gradient_contract.md``).

C classes, D width, B global samples, S local rows of the step, l labels per sample, -1 pads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ovtrain.config.head import HeadConfig
from ovtrain.distributed.context import World, seed_for
from ovtrain.heads.losses import logistic

INIT_BLOCK = 1024
"""Rows initialised from one generator: the start does not depend on the sharding."""


def hash_rows(ids: Tensor, seed: int) -> Tensor:
    """(S,) int64 row ids -> (S,) float64 in [0, 1): splitmix64 of id and seed."""
    x = ids * -7046029254386353131 + seed  # 0x9E3779B97F4A7C15 as a signed number
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        x = (x ^ _shift_right(x, shift)) * factor
    return _shift_right(x, 11).double() * 2.0**-53


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 (torch's >> is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def init_rows(lo: int, hi: int, width: int, std: float, seed: int) -> Tensor:
    """(hi - lo, D) rows ~ N(0, std), a function of (seed, global row) alone."""
    blocks: list[Tensor] = []
    for block in range(lo // INIT_BLOCK, -(-hi // INIT_BLOCK)):
        generator = torch.Generator().manual_seed(seed_for(seed, "head-init", block))
        rows = torch.empty(INIT_BLOCK, width).normal_(std=std, generator=generator)
        first = block * INIT_BLOCK
        blocks.append(rows[max(lo - first, 0) : max(min(hi - first, INIT_BLOCK), 0)])
    return torch.cat(blocks) if blocks else torch.empty(0, width)


class ClassShardedHead:
    """Rows lo..hi of one source's class centers on this rank."""

    def __init__(
        self, source: str, classes: int, width: int, config: HeadConfig, world: World, seed: int
    ) -> None:
        self.source, self.classes, self.width, self.config = source, classes, width, config
        mine = world.slice_of(classes)
        self.lo, self.hi = mine.start, mine.stop
        self.seed = seed_for(seed, f"head:{source}")
        rows = init_rows(self.lo, self.hi, width, config.init_std, self.seed)
        self.rows = rows.to(world.device)
        self.sampled = max(1, round(config.sample_rate * classes))
        self.bias = math.log(10 / self.sampled) if config.bias is None else config.bias
        self._ids = torch.arange(self.lo, self.hi, device=world.device)

    def draw(self, step: int, labels: Tensor) -> Tensor:
        """(S,) sorted global ids of the local rows of this step.

        ``labels`` (B, l): positives of the whole global batch of the step, all micro-steps.
        """
        if self.config.sample_rate >= 1:
            return self._ids
        chosen = hash_rows(self._ids, seed_for(self.seed, "draw", step)) < self.config.sample_rate
        local = labels[(labels >= self.lo) & (labels < self.hi)].long() - self.lo
        chosen[local] = True
        return self._ids[chosen]

    def take(self, ids: Tensor) -> Tensor:
        """(S, D) leaf copy of the rows of this step; gradients of the micro-steps add up on it."""
        return self.rows[ids - self.lo].detach().requires_grad_()

    def loss(
        self, embeddings: Tensor, labels: Tensor, rows: Tensor, ids: Tensor, count: int
    ) -> Tensor:
        """() this rank's part of a micro-step's share of the step's global-mean loss.

        embeddings (B, D) and labels (B, l), -1 where absent, of this source on all ranks; rows and
        ids from ``take`` and ``draw``; count: labelled samples in the step's global batch. The
        parts of all ranks and micro-steps add up to the loss; nobody divides again.
        """
        cosine = normalize(embeddings) @ normalize(rows).T
        positive = (labels[:, :, None] == ids).any(1)  # (B, S)
        per_sample = logistic(self.config.scale * cosine + self.bias, positive)
        positives = (labels >= 0).sum(1)
        if self.config.reduction == "positive":
            per_sample = per_sample / positives.clamp(min=1)
        return (per_sample * (positives > 0)).sum() / max(count, 1)

    @torch.no_grad()
    def scores(self, embeddings: Tensor) -> Tensor:
        """(B, hi - lo) cosines of embeddings with the local rows, for evaluation."""
        return normalize(embeddings.float()) @ normalize(self.rows).T
