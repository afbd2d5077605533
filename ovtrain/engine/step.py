"""One optimizer step: micro-steps through the planes' boundary, clip, both optimizers.

The embeddings are cut from the graph at the boundary. The heads' losses are summed over sources and
carry gradients to my class rows (exact, complete) and, through the gather's backward, to the
embeddings of my samples (exact, complete). The backend then takes (z * dL/dz).sum() into the
encoder.

B samples of a micro-step on this rank, D width, L labels per sample (padded).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ovtrain.config.train import TrainConfig
from ovtrain.data.batch import PackedBatch
from ovtrain.data.loader import StepBatch
from ovtrain.distributed.collectives import all_gather_padded, all_gather_sum, all_reduce
from ovtrain.distributed.context import World
from ovtrain.distributed.grad_norm import clip_factor, sharded_square_sum
from ovtrain.engine.backend import Backend
from ovtrain.heads.class_sharded import ClassShardedHead
from ovtrain.optim.schedule import learning_rate
from ovtrain.optim.sparse_rows import SparseRowAdamW


@dataclass(frozen=True)
class SourceHead:
    """A source's head with its optimizer; ``number`` is the source's place in the config."""

    number: int
    weight: float
    head: ClassShardedHead
    optimizer: SparseRowAdamW
    max_labels: int


@dataclass(frozen=True)
class Drawn:
    """What one head needs in one step: rows (S, D) with ids (S,), labels (B, l) per micro-step, and
    the labelled samples of the step's global batch."""

    ids: Tensor
    rows: Tensor
    labels: list[Tensor]
    count: int


class TrainStep:
    def __init__(
        self, config: TrainConfig, backend: Backend, heads: list[SourceHead], world: World
    ) -> None:
        self.config, self.backend, self.heads, self.world = config, backend, heads, world
        self.max_labels = max((h.max_labels for h in heads), default=1)

    def run(self, batch: StepBatch, step: int) -> dict[str, Tensor]:
        """Do update ``step`` (0-based). Returns device scalars: loss, loss/<source>, grad_norm."""
        micros = [micro.to(self.world.device) for micro in batch.micro]
        drawn = [self._draw(head, batch, micros, step) for head in self.heads]
        losses = torch.zeros(len(self.heads), device=self.world.device)
        for k, micro in enumerate(micros):
            losses += self._micro_step(k, micro, batch, drawn)
        norm = self._update(drawn, step)
        losses = all_reduce(losses, self.world.group)
        weights = torch.tensor([h.weight for h in self.heads], device=losses.device)
        named = {f"loss/{h.head.source}": x for h, x in zip(self.heads, losses, strict=True)}
        return {"loss": (losses * weights).sum(), **named, "grad_norm": norm}

    def _draw(
        self, head: SourceHead, batch: StepBatch, micros: list[PackedBatch], step: int
    ) -> Drawn:
        labels: list[Tensor] = []
        for micro, slots, rows in zip(micros, batch.slots, batch.rows, strict=True):
            padded = micro.padded_labels(self.max_labels)
            gathered = all_gather_padded(padded, slots, self.world.group, fill=-1)
            labels.append(gathered[rows[head.number].to(gathered.device)])
        ids = head.head.draw(step, torch.cat(labels))
        count = sum(int((part >= 0).any(1).sum()) for part in labels)
        return Drawn(ids, head.head.take(ids), labels, count)

    def _micro_step(
        self, k: int, micro: PackedBatch, batch: StepBatch, drawn: list[Drawn]
    ) -> Tensor:
        """(heads,) this rank's detached part of each source's loss."""
        _, pooled = self.backend.forward(micro)
        embeddings = pooled.float()
        cut = embeddings.detach().requires_grad_()  # the boundary between the two planes
        gathered = all_gather_sum(cut, batch.slots[k], self.world.group)
        parts = [
            h.head.loss(
                gathered[batch.rows[k][h.number].to(gathered.device)],
                d.labels[k],
                d.rows,
                d.ids,
                d.count,
            )
            for h, d in zip(self.heads, drawn, strict=True)
        ]
        total = torch.stack([h.weight * x for h, x in zip(self.heads, parts, strict=True)]).sum()
        total.backward()
        assert cut.grad is not None
        self.backend.backward((embeddings * cut.grad).sum(), last=k == len(batch.micro) - 1)
        return torch.stack(parts).detach()

    def _update(self, drawn: list[Drawn], step: int) -> Tensor:
        optim, steps = self.config.optim, self.config.run.total_steps
        gradients = [d.rows.grad for d in drawn if d.rows.grad is not None]
        squares = sharded_square_sum(gradients, self.world.group)
        norm = self.backend.step(learning_rate(optim, step, steps), squares)
        factor = clip_factor(norm, optim.clip)
        lr = learning_rate(optim, step, steps, optim.head_lr)
        for head, d in zip(self.heads, drawn, strict=True):
            if d.rows.grad is not None and len(d.ids):
                head.optimizer.step(d.ids - head.head.lo, d.rows.grad * factor, lr)
        return norm
