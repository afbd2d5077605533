"""Peer of the training step: the released stage-2 loop, rebuilt for one process.

    behaviour                                                                       from
    a batch's clips are split by position: codec, then frame sampling, then tiling  released trainer
    one forward pass each for codec and sampled frames together, for tiles, for
    images and for documents; one backward pass of the summed losses of all heads   released trainer
    frame sampling: one frame out of each eighth of the clip; tiles: such frames,
    stacked to 1,792 x 224                                                          released trainer
    a head of each source: ``peer_heads.PeerHead`` with eight softmaxes             released trainer
    gradients clipped to norm 5, of the encoder and of each head by itself          released trainer
    AdamW on everything, weight decay 0.05 on everything                            released trainer
    the encoder: ``peer_encoder``; the data: ``peer_data``                          released trainer

Nothing was slowed. Shares are exact, where the original's are rounded down; AdamW is fused; the
losses are not read back; there is no wrapper for ranks, of which there is one. A step is one
micro-step and its update, on both sides; the release does four micro-steps per update, which would
take three quarters of ``update`` and of the centers' optimizers off either side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from peer_data import DenseBatch
from peer_encoder import PeerEncoder, all_patches, patches_at
from peer_heads import PeerHead
from torch import Tensor

CLIP, WEIGHT_DECAY, BETAS = 5.0, 0.05, (0.9, 0.999)
Stopwatch = Callable[[str], AbstractContextManager[object]]


class PeerStep:
    """``heads``: of pictures, documents and clips. ``visible`` (codec clips, n): flat places of
    their patches. ``chunks``: frames of the other views."""

    def __init__(
        self,
        encoder: PeerEncoder,
        heads: Sequence[PeerHead],
        views: tuple[int, int, int],
        chunks: int,
        *,
        bf16: bool,
        lr: float,
        seed: int = 0,
    ) -> None:
        self.encoder, self.heads, self.views, self.chunks = encoder, heads, views, chunks
        self.bf16, self.device = bf16, encoder.probe.device
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.AdamW(
            encoder.parameters(), lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
        )

    def run(
        self,
        batch: DenseBatch,
        visible: Tensor,
        labels: Sequence[Tensor],
        watch: Stopwatch = lambda _: nullcontext(),
    ) -> list[Tensor]:
        """One step. labels: (B, l) of pictures, documents and clips -> their reported losses."""
        with watch("encoder"):
            batch = DenseBatch(*(part.to(self.device, non_blocking=True) for part in batch))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                pooled = [x.float() for x in self.embeddings(batch, visible)]
        with watch("head"):
            cut = [x.detach().requires_grad_() for x in pooled]
            sums = [h.loss_sum(x, y) for h, x, y in zip(self.heads, cut, labels, strict=True)]
            torch.stack(sums).sum().backward()
        with watch("encoder"):
            torch.autograd.backward(pooled, [x.grad for x in cut])
        with watch("head"):
            for head in self.heads:
                torch.nn.utils.clip_grad_norm_([head.weight], CLIP)
                head.optimizer.step()
                head.optimizer.zero_grad(set_to_none=True)
        with watch("update"):
            torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return [s.detach() / h.softmaxes for s, h in zip(sums, self.heads, strict=True)]

    def embeddings(self, batch: DenseBatch, visible: Tensor) -> list[Tensor]:
        """(B, D) of pictures, documents and clips."""
        patch, clips = self.encoder.patch, batch.clips
        frames, height, width = clips.shape[2], clips.shape[3] // patch, clips.shape[4] // patch
        codec, sampled, tiled = self.views
        found = [self._pictures(x) for x in (batch.pictures, batch.documents)]
        indices = torch.cat([visible, self._sampled(sampled, frames, height * width)])
        sparse = patches_at(clips[: codec + sampled], indices, patch)
        whole = self.encoder(sparse, (frames, height, width), indices)
        where = self._sampled(tiled, frames, height * width)
        tiles = patches_at(clips[codec + sampled :], where, patch)
        tall = self.encoder(tiles, (1, self.chunks * height, width))
        return [*found, torch.cat([whole, tall])]

    def _pictures(self, pictures: Tensor) -> Tensor:
        patch, (height, width) = self.encoder.patch, pictures.shape[-2:]
        grid = (1, height // patch, width // patch)
        return self.encoder(all_patches(pictures, patch), grid)

    def _sampled(self, count: int, frames: int, tokens: int) -> Tensor:
        """(count, chunks * tokens) flat places of all patches of a frame out of each chunk."""
        length = frames // self.chunks
        drawn = torch.randint(length, (count, self.chunks), generator=self.generator)
        first = (drawn + torch.arange(self.chunks) * length) * tokens
        return (first[..., None] + torch.arange(tokens)).flatten(1).to(self.device)
