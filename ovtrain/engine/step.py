"""One optimizer step: micro-steps through the planes' boundary, clip, both optimizers.

The embeddings are cut from the graph at the boundary. The heads give each source's loss, the exact
and complete gradient of my class rows, and that of my samples' embeddings. The backend then takes
(z * dL/dz).sum() into the encoder.

What a step needs beside the embeddings is decided on the host before its first forward pass: labels
travel once, as int32, between hosts; the rows are drawn from them. Nothing here waits for a device:
whether the step is sound, and so whether the optimizers take it, is decided there (gate.py).

B samples of a micro-step on this rank, D width, L labels per sample (padded).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ovtrain.config.train import TrainConfig
from ovtrain.data.batch import PackedBatch
from ovtrain.data.loader import StepBatch
from ovtrain.distributed.collectives import all_gather_padded, all_reduce, reduce_in_place
from ovtrain.distributed.grad_norm import clip_factor
from ovtrain.distributed.mesh import Mesh
from ovtrain.engine.backend import Backend
from ovtrain.engine.gate import ReplicatedGradients, TokenGradients, UpdateGate
from ovtrain.heads.class_sharded import ClassShardedHead, Plan
from ovtrain.heads.multi_source import HeadStep, MultiSource
from ovtrain.models.encoder import Encoder
from ovtrain.ops.buffers import send
from ovtrain.optim.schedule import learning_rate
from ovtrain.optim.sparse_rows import SparseRows
from ovtrain.schema.errors import LabelError

NAMED = 10
"""Samples without labels that each rank names per source; all are counted."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceHead:
    """A source's head with its optimizer; ``number`` is the source's place in the config."""

    number: int
    weight: float
    head: ClassShardedHead
    optimizer: SparseRows
    max_labels: int


@dataclass(frozen=True)
class StepResult:
    """metrics: device scalars. sound[k] (B,) bool: the samples of micro-step k whose embedding has
    a direction and whose gradients are finite. squares (H,): of this rank's class rows, per head.
    unlabelled: this rank's samples without labels per head (host)."""

    metrics: dict[str, Tensor]
    sound: list[Tensor]
    squares: Tensor
    unlabelled: list[int]


@dataclass(frozen=True)
class _Forwarded:
    """embeddings (B, D) float32 of a micro-step, with its cu_seqlens (B + 1,)."""

    embeddings: Tensor
    cu_seqlens: Tensor


class TrainStep:
    """``name_of``: (source number, key) -> a sample's name, for messages."""

    def __init__(
        self,
        config: TrainConfig,
        encoder: Encoder,
        backend: Backend,
        heads: list[SourceHead],
        mesh: Mesh,
        name_of: Callable[[int, int], str],
    ) -> None:
        self.config, self.backend, self.heads = config, backend, heads
        self.mesh, self.world = mesh, mesh.world
        self.name_of = name_of
        self.max_labels = max((h.max_labels for h in heads), default=1)
        self._named = [0] * len(heads)
        self.sources = MultiSource(mesh)
        self.gate = UpdateGate(mesh.world.device, stay_shut=config.guards.on_nonfinite == "stop")
        self.token_gradients = TokenGradients(encoder.embeddings)
        plan = encoder.tensor_plan()
        whole = [p for name, p in encoder.named_parameters() if name not in plan]
        self.replicated = ReplicatedGradients(whole) if mesh.tensor.size > 1 else None

    def run(self, batch: StepBatch, step: int) -> StepResult:
        """Do update ``step`` (0-based), unless the gate refuses it. Metrics: loss, loss/<source>,
        grad_norm; unsound, the samples of the global batch with an embedding that is zero or not
        finite, or with a gradient that is not; refused, 1 where nothing was updated. Raises
        LabelError."""
        unlabelled = self._check(batch)
        labels = self._global_labels(batch)
        plans = [h.head.plan(step, labels[n]) for n, h in enumerate(self.heads)]
        steps = [self._take(h, plan) for h, plan in zip(self.heads, plans, strict=True)]
        device, count = self.world.device, len(batch.micro)
        losses = torch.zeros(len(self.heads), device=device)
        sound: list[Tensor] = []
        ahead = self.config.run.forward_ahead and self.backend.runs_ahead
        now = self._forward(batch.micro[0])
        for k in range(count):
            places = [send(batch.rows[k][h.number], device) for h in self.heads]
            cut = now.embeddings.detach().contiguous()  # the boundary between the two planes
            gathering = self.sources.begin(cut, steps, batch.slots[k])
            more = k + 1 < count
            later = self._forward(batch.micro[k + 1]) if more and ahead else None
            result = self.sources.finish(gathering, steps, k, places)
            self.backend.backward((now.embeddings * result.gradient).sum(), last=not more)
            losses += result.losses
            finite = result.gradient.isfinite().all(1)
            sound.append(result.sound & finite & self.token_gradients.sound(now.cu_seqlens))
            if more:
                now = later or self._forward(batch.micro[k + 1])
        squares = self._squares(steps)
        unsound = self._unsound(sound)
        squared = squares.sum()
        if self.replicated is not None:
            squared = squared + self.replicated.defect()
        sums = torch.cat([losses, unsound.float()[None], squared[None]])
        *losses, unsound, total = all_reduce(sums, self.world.group)
        self.gate.unsound = unsound + sum((~loss.isfinite()).float() for loss in losses)
        norm = self._update(steps, step, total)
        metrics = self._metrics(losses, norm) | {"unsound": unsound, "refused": self.gate.refused}
        return StepResult(metrics, sound, squares, unlabelled)

    def _forward(self, micro: PackedBatch) -> _Forwarded:
        moved = micro.to(self.world.device)
        return _Forwarded(self.backend.forward(moved).float(), moved.cu_seqlens)

    def _unsound(self, sound: Sequence[Tensor]) -> Tensor:
        """() of this rank's samples. Tensor ranks have the same: the first counts what any sees, as
        one that fails may see what others do not."""
        lost = (~torch.cat(list(sound))).float()
        lost = reduce_in_place(lost, self.mesh.tensor.group, "max")
        return lost.sum() * self.mesh.speaks

    def _squares(self, steps: Sequence[HeadStep | None]) -> Tensor:
        """(H,) squared norms of this rank's class rows' gradients, weighted as the loss is."""
        zero = torch.zeros((), device=self.world.device)
        return torch.stack(
            [zero if s is None else s.head.gradient_squares(s.rows) * s.weight**2 for s in steps]
        )

    def _metrics(self, losses: list[Tensor], norm: Tensor) -> dict[str, Tensor]:
        named = {f"loss/{h.head.source}": x for h, x in zip(self.heads, losses, strict=True)}
        weighted = [h.weight * x for h, x in zip(self.heads, losses, strict=True)]
        return {"loss": torch.stack(weighted).sum(), **named, "grad_norm": norm}

    def _global_labels(self, batch: StepBatch) -> list[list[npt.NDArray[np.int32]]]:
        """Per head and micro-step, (B, L) labels of the source's samples on all ranks."""
        padded = [
            torch.nn.functional.pad(
                micro.padded_labels(self.max_labels), (0, 0, 0, slots - micro.samples), value=-1
            )
            for micro, slots in zip(batch.micro, batch.slots, strict=True)
        ]
        all_slots = sum(batch.slots)
        gathered = all_gather_padded(torch.cat(padded), all_slots, self.mesh.data.group, fill=-1)
        by_rank = gathered.view(-1, all_slots, self.max_labels).split(batch.slots, dim=1)
        tables = [part.flatten(0, 1).numpy() for part in by_rank]
        return [
            [
                table[rows[h.number].numpy(), : h.max_labels]
                for table, rows in zip(tables, batch.rows, strict=True)
            ]
            for h in self.heads
        ]

    def _check(self, batch: StepBatch) -> list[int]:
        """Samples without labels per head; the first of them are named. Raises LabelError where a
        label is no class of its source's head."""
        return [
            sum(self._check_one(n, micro) for micro in batch.micro) for n in range(len(self.heads))
        ]

    def _check_one(self, n: int, micro: PackedBatch) -> int:
        source = self.heads[n]
        counts = micro.label_offsets.diff()
        owners = torch.repeat_interleave(counts.long())
        outside = (micro.labels < 0) | (micro.labels >= source.head.classes)
        wrong = (outside & (micro.source[owners] == source.number)).nonzero().flatten()
        if len(wrong):
            at = int(wrong[0])
            raise LabelError(
                f"source {source.head.source}, sample {self._name(source, micro, owners[at])}",
                f"label {int(micro.labels[at])}, the first of {len(wrong)} such in a batch",
                allowed=f"0 to {source.head.classes - 1}",
                fix="assign the labels again",
            )
        # A placeholder (key 0) stands for a sample that could not be read: counted elsewhere.
        bare = (counts == 0) & (micro.source == source.number) & (micro.key != 0)
        for at in bare.nonzero().flatten()[: NAMED - self._named[n]]:
            self._named[n] += 1
            log.warning(
                "source %s: sample %s has no labels and takes no part in the loss%s",
                source.head.source,
                self._name(source, micro, at),
                "; others will only be counted" if self._named[n] == NAMED else "",
            )
        return int(bare.sum())

    def _name(self, source: SourceHead, micro: PackedBatch, at: Tensor) -> str:
        return self.name_of(source.number, int(micro.key[at]))

    def _take(self, source: SourceHead, plan: Plan) -> HeadStep | None:
        """The rows of a step; None where no sample of the source has a label."""
        if not plan.count:
            return None
        head = source.head
        rows = head.take(plan, source.optimizer.pending)
        return HeadStep(head, source.weight, plan, rows)

    def _update(self, steps: Sequence[HeadStep | None], step: int, squares: Tensor) -> Tensor:
        optim, total = self.config.optim, self.config.run.total_steps
        norm = self.backend.step(learning_rate(optim, step, total), squares, self.gate)
        factor = self.gate.applied(clip_factor(norm, optim.clip))
        lr = learning_rate(optim, step, total, optim.head_lr)
        for source, s in zip(self.heads, steps, strict=True):
            if s is not None and s.weight > 0:
                clip = factor * s.weight
                source.optimizer.step(s.rows.index, s.rows.gradient, lr, step, clip)
        return norm
