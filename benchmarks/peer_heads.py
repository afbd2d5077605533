"""Peers of the class-sharded head: rebuilds of the published head and of one Partial-FC softmax.

``PeerHead(softmaxes=8)`` is the head of the released OneVision-Encoder trainer,
``PeerHead(softmaxes=1)`` Partial-FC as in its reference implementation (PartialFC_V2 of arcface)
with the same margin. Both are one shard, ``rows`` of all classes from ``class_start`` on, in one
process: the reductions over ranks do nothing there, and embeddings and labels come gathered.

    behaviour                                                                       from
    eight positives a step: the first of a random order of the sample's labels      released trainer
    per positive: own draw, own gather of rows, own GEMM, own softmax               released trainer
    all eight are backpropagated at once, so all their probabilities are in memory  released trainer
    the sum of the eight losses is optimised, their mean reported                   released trainer
    one positive, one draw, one softmax, gradient of the mean                       Partial-FC
    drawn: positives, then rows with the largest uniform numbers; positives alone
    where they are more than int(rate * rows)                                       Partial-FC
    ``weight[index]`` on a dense parameter: the gradient is dense too               Partial-FC
    cosines in float32 or, under autocast, by a bfloat16 GEMM; clamped to -1..1     both
    CosFace: scale 64, margin 0.3, negative cosines above 0.75 become 0             released trainer
    a sample without a local positive keeps its row's softmax and its gradient;
    its loss is -log(1e-30) unless another rank has the positive                    Partial-FC
    AdamW over all rows, weight decay 0.05, rows start at N(0, 0.01)                released trainer

Ours differs on purpose: one draw per step for the whole batch, all positives of a sample on one row
of logits, no logits in memory, gradients and optimizer only for touched rows, an optimized loss
that is the reported one, draws that do not depend on the sharding.

Nothing was slowed. Where the originals do more than their recipe asks for, the cheap form stands
here: random numbers are made on the device, not copied to it; the host waits for the device in the
draws only, and all draws come before the first GEMM; target entries are addressed, not gathered in
whole rows or through one-hot matrices; the filter is a boolean mask; the backward pass reuses the
probabilities' memory; AdamW is fused; no sampling at rate 1. Clipping of the head's gradient, which
the released trainer does, is left out.

B samples, D width, R rows of the shard, S rows of a draw, P samples with a local positive, l labels
per sample.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, normalize

SCALE, MARGIN, FILTER = 64.0, 0.3, 0.75
INIT_STD, WEIGHT_DECAY, BETAS = 0.01, 0.05, (0.9, 0.999)


class Draw(NamedTuple):
    """The class rows of one softmax and where in it the local positives are."""

    index: Tensor | None
    """(S,) sorted rows of the shard; None: all of them."""
    samples: Tensor
    """(P,) samples whose positive is local."""
    columns: Tensor
    """(P,) place of that positive among the S rows."""


class PeerHead:
    """A shard of class centers with its optimizer; see the module for what it rebuilds."""

    def __init__(
        self,
        rows: int,
        width: int,
        class_start: int,
        *,
        softmaxes: int,
        rate: float = 0.1,
        bf16: bool = True,
        seed: int = 0,
        lr: float = 1e-3,
        device: str | torch.device = "cpu",
    ) -> None:
        self.rows, self.class_start, self.softmaxes, self.bf16 = rows, class_start, softmaxes, bf16
        self.sampled = rows if rate >= 1 else int(rate * rows)
        if self.sampled < 1:
            raise ValueError(f"rate={rate} of rows={rows} draws no row; rate * rows must reach 1")
        self.generator = torch.Generator(device).manual_seed(seed)
        start = torch.empty(rows, width, device=device)
        self.weight = nn.Parameter(start.normal_(std=INIT_STD, generator=self.generator))
        self.optimizer = torch.optim.AdamW(
            [self.weight], lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
        )

    def step(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One update. embeddings (B, D) float32, labels (B, l) global int64 ids, both on the
        head's device -> the reported loss () and the embeddings' gradient (B, D), which for
        several softmaxes is that of their sum."""
        leaf = embeddings.detach().requires_grad_()
        total = self.loss_sum(leaf, labels)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        assert leaf.grad is not None
        return total.detach() / self.softmaxes, leaf.grad

    def loss_sum(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """() sum over the softmaxes, with its graph."""
        draws = [self.draw(column) for column in self.positives(labels).unbind(1)]
        with torch.autocast(embeddings.device.type, torch.bfloat16, enabled=self.bf16):
            unit = normalize(embeddings)
            cosines = [linear(unit, normalize(self._activated(draw))) for draw in draws]
        losses = []
        for draw in draws:
            logits = margin_logits(cosines.pop(0).float(), draw)  # bfloat16 ones go one by one
            losses.append(cross_entropy(logits, draw))
        return torch.stack(losses).sum()

    @torch.no_grad()
    def positives(self, labels: Tensor) -> Tensor:
        """(B, l) labels -> (B, softmaxes): the first one, or so many in random order."""
        if labels.shape[1] < self.softmaxes:
            raise ValueError(f"{labels.shape[1]} labels per sample, at least {self.softmaxes} used")
        if self.softmaxes == 1:
            return labels[:, :1]
        noise = torch.rand(labels.shape, device=labels.device, generator=self.generator)
        return labels.gather(1, noise.argsort(1)[:, : self.softmaxes])

    @torch.no_grad()
    def draw(self, labels: Tensor) -> Draw:
        """labels (B,): one global id per sample."""
        local = labels - self.class_start
        samples = ((local >= 0) & (local < self.rows)).nonzero()[:, 0]
        targets = local[samples]
        if self.sampled == self.rows:
            return Draw(None, samples, targets)
        index = targets.unique()
        if len(index) <= self.sampled:
            chance = torch.rand(self.rows, device=labels.device, generator=self.generator)
            chance[index] = 2.0
            index = chance.topk(self.sampled, sorted=False).indices.sort().values
        return Draw(index, samples, torch.searchsorted(index, targets))

    def _activated(self, draw: Draw) -> Tensor:
        return self.weight if draw.index is None else self.weight[draw.index]


def margin_logits(cosine: Tensor, draw: Draw) -> Tensor:
    """(B, S) float32 cosines -> logits with clamp, filter, margin and scale."""
    cosine = cosine.clamp(-1, 1)
    with torch.no_grad():
        wrong = cosine > FILTER
        wrong[draw.samples, draw.columns] = False
    cosine = cosine.masked_fill(wrong, 0.0)
    cosine[draw.samples, draw.columns] -= MARGIN
    return cosine * SCALE


def cross_entropy(logits: Tensor, draw: Draw) -> Tensor:
    """() mean over all B samples; takes the memory of ``logits`` (B, S) over."""
    return _CrossEntropy.apply(logits, draw.samples, draw.columns)  # pyright: ignore


class _CrossEntropy(torch.autograd.Function):
    """Partial-FC's cross entropy for world size 1, probabilities saved in place of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, samples: Tensor, columns: Tensor) -> Tensor:
        probability = logits.sub_(logits.amax(1, keepdim=True)).exp_()
        probability.div_(probability.sum(1, keepdim=True))
        target = probability.new_zeros(len(probability))
        target[samples] = probability[samples, columns]
        ctx.save_for_backward(probability, samples, columns)
        return -target.clamp_min_(1e-30).log_().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        probability, samples, columns = ctx.saved_tensors
        probability[samples, columns] -= 1.0
        return probability.mul_(grad / len(probability)), None, None
