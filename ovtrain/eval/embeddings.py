"""Tokens of a frozen encoder over a prepared set of clips, at a stated view and token budget.

S clips, n tokens each, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ovtrain.data import views
from ovtrain.data.batch import PackedBatch, PackedSample, pack
from ovtrain.data.clips import ClipReader
from ovtrain.data.shards import ShardReader
from ovtrain.data.views import ViewPlan
from ovtrain.models.encoder import Encoder


@dataclass(frozen=True)
class ViewSpec:
    """What the encoder is shown: ``codec`` | ``frames`` | ``middle frame`` | ``random frame`` (the
    last two are one frame, at t = 0; a random frame is another one for each clip).

    Controls: ``blanked`` replaces every pixel by the mean, so that positions alone are left;
    ``permuted`` deals a clip's patches to its positions at random: the set of positions and the
    set of patches stay, what lay where does not."""

    name: str
    token_budget: int
    chunks: int
    control: Literal["", "blanked", "permuted"] = ""

    @property
    def label(self) -> str:
        return f"{self.control} {self.name}".strip()


class ClipSet:
    """Clips of one source for evaluation, read in shard order with the evaluation's fixed
    frames."""

    def __init__(self, folder: str, cache_dir: str = "") -> None:
        self.reader = ShardReader(folder)
        self.clips = ClipReader(self.reader, cache_dir)
        self.grid = self.clips.grid

    def __len__(self) -> int:
        return len(self.reader)

    def plan(self, i: int, spec: ViewSpec) -> ViewPlan:
        if spec.name == "codec":
            return views.codec_view(self.reader.energy(i), self.grid, spec.token_budget)
        if spec.name == "frames":
            return views.frames_view(self.grid, spec.chunks, None)
        frame = self.grid.frames // 2
        if spec.name == "random frame":
            frame = int(np.random.default_rng(i).integers(self.grid.frames))
        where = self.grid.frame_positions(frame)
        return ViewPlan(where, where * np.array([0, 1, 1]))

    def sample(self, i: int, spec: ViewSpec) -> PackedSample:
        """Raises MediaError where the clip cannot be read."""
        plan = self.plan(i, spec)
        patches = self.clips.clip(i).patches(plan.where)
        if spec.control == "permuted":
            patches = np.random.default_rng(i).permutation(patches)
        return PackedSample(patches, plan.positions, np.empty(0, np.int32), 0, 0, i)


def batches(
    clips: ClipSet, rows: Sequence[int], spec: ViewSpec, size: int, workers: int
) -> Iterator[PackedBatch]:
    """The clips ``rows`` in order, ``size`` at a time; the next batch is read while one is used."""
    with ThreadPoolExecutor(workers) as pool:

        def read(start: int) -> PackedBatch:
            return pack([clips.sample(i, spec) for i in rows[start : start + size]])

        yield from pool.map(read, range(0, len(rows), size))


@torch.inference_mode()
def encode(
    encoder: Encoder,
    clips: ClipSet,
    rows: Sequence[int],
    spec: ViewSpec,
    *,
    size: int,
    workers: int,
    bf16: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per batch: tokens (B, n, D) float32 and pooled (B, D) float32."""
    for batch in batches(clips, rows, spec, size, workers):
        patches = batch.patches
        if spec.control == "blanked":
            patches = torch.zeros(patches.shape)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            tokens, pooled = encoder(patches, batch.positions, batch.cu_seqlens, batch.max_seqlen)
        yield tokens.float().unflatten(0, (batch.samples, -1)), pooled.float()
