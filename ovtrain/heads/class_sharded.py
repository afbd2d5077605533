"""The class-sharded sampled head (paper eq. 9, r = 0.1): millions of centers, a slice per rank.

Per step a share ``r`` of all global rows is drawn, shared by the batch, plus every positive of the
global batch; a sample's own positives are never its negatives. ``plan`` decides all of it on the
host; what then runs on the device is products, kernels and small index operations whose sizes the
host knows, so nothing in a step waits for the device.

The head lives outside the backend and outside of autograd: it takes unit embeddings and gives its
rank's terms of the loss with exact gradients (see ``multi_source.py`` for how ranks come together,
``docs/gradient_contract.md`` for who divides).

C classes, D width, B global samples of a micro-step, S local rows of the step, l labels per sample.
"""

# torch.from_numpy is only partly typed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ovtrain.config.head import HeadConfig
from ovtrain.distributed.context import World, seed_for
from ovtrain.heads.draw import Ids, distinct, draw_rows, drawn_positives
from ovtrain.heads.initial import initial_rows
from ovtrain.heads.streaming import PAD, DrawnRows, Stream, Targets, tile_rows
from ovtrain.ops.buffers import Buffers, send
from ovtrain.ops.class_kernels import kernels_for
from ovtrain.schema.errors import LabelError

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Plan:
    """A step of one head, on the host. ids (S,) global, sorted; ``always`` (S,) marks positives of
    the global batch; labels (B, l) of each micro-step, distinct, -1 where there is none, and which
    of them take part; ``count`` labelled samples of the step's global batch."""

    step: int
    ids: Ids
    always: npt.NDArray[np.bool_]
    labels: list[Labels]
    active: list[npt.NDArray[np.bool_]]
    count: int


class ClassShardedHead:
    """Rows lo..hi of one source's class centers on this rank.

    ``rows`` (hi - lo, D) float32 or bfloat16. ``bf16``: products in bfloat16. ``centroids``: see
    ``initial.py``. Raises LabelError where those do not fit.
    """

    def __init__(
        self,
        source: str,
        classes: int,
        width: int,
        config: HeadConfig,
        world: World,
        seed: int,
        *,
        bf16: bool = False,
        centroids: str = "",
    ) -> None:
        self.source, self.classes, self.width = source, classes, width
        self.config = config.resolved(classes)
        mine = world.slice_of(classes)
        self.lo, self.hi = mine.start, mine.stop
        self.seed = seed_for(seed, f"head:{source}")
        rows = initial_rows(config, mine, width, self.seed, classes=classes, centroids=centroids)
        self.rows = rows.to(world.device)
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.kernels = kernels_for(world.device.type)
        self.buffers = Buffers(world.device)

    def plan(self, step: int, labels: Sequence[Labels]) -> Plan:
        """Decide a step from the labels (B, l), -1 pads, of each micro-step's global batch.
        Raises LabelError where a label is no class."""
        for part in labels:
            self._check(part)
        labels = [distinct(part) for part in labels]
        count = self.config.positives_per_step
        seed = seed_for(self.seed, "positives", step)
        active = [drawn_positives(part, count, seed) for part in labels]
        every = np.concatenate([part[on] for part, on in zip(labels, active, strict=True)])
        mine = np.unique(every[(every >= self.lo) & (every < self.hi)]).astype(np.int64)
        labelled = sum(int((part >= 0).any(1).sum()) for part in labels)
        rate = self.config.sample_rate if labelled else 0.0
        ids = draw_rows(self.lo, self.hi, seed_for(self.seed, "draw", step), rate, mine)
        always = np.zeros(len(ids), bool)
        always[np.searchsorted(ids, mine)] = True
        return Plan(step, ids, always, labels, active, labelled)

    def _check(self, labels: Labels) -> None:
        least, most = (labels.min(), labels.max()) if labels.size else (0, 0)
        if least < -1 or most >= self.classes:
            raise LabelError(
                f"source {self.source}",
                f"labels from {least} to {most}",
                allowed=f"0 to {self.classes - 1}, and -1 where there is none",
                fix="assign the labels again",
            )

    def take(self, plan: Plan, pending: Callable[[Tensor], Tensor] | None = None) -> DrawnRows:
        """Copy the rows of a step out; the last step's are gone then. pending: local rows (S,) ->
        the factors (S,) of weight decay that they still owe."""
        index = self._send(plan.ids - self.lo)
        padded = max(-(-len(index) // PAD), 1) * PAD
        worth = 1.0
        if self.config.negatives == "importance":
            worth = 1 / self.config.sample_rate
        weight = np.zeros(padded, np.float32)
        weight[: len(plan.ids)] = np.where(plan.always, 1.0, worth)
        unit = self.buffers.empty("unit", (padded, self.width), self.dtype)
        inverse = torch.empty(len(index), device=unit.device)
        owed = torch.ones_like(inverse) if pending is None else pending(index)
        self.kernels.unit_rows(self.rows, index, unit, inverse)
        wide = torch.float32 if len(plan.labels) > 1 else self.dtype  # sums of micro-steps
        gradient = self.buffers.empty("gradient", (padded, self.width), wide)
        return DrawnRows(self.rows, index, unit, inverse, owed, self._send(weight), gradient)

    def stream(self, embeddings: Tensor, plan: Plan, k: int, rows: DrawnRows) -> Stream:
        """The loss of micro-step ``k``'s samples of this source on all ranks, given their unit
        ``embeddings`` (B, D), ready to be computed."""
        targets = self._targets(plan, k, len(rows.weight))
        present = embeddings.abs().amax(1) > 0
        targets = replace(targets, coefficient=targets.coefficient * present)
        e = embeddings.to(self.dtype)
        return Stream(self.config, self.kernels, self.buffers, rows, targets, e)

    def gradient_squares(self, rows: DrawnRows) -> Tensor:
        """() squared norm of the gradient of the rows of a step, which is made of that of the unit
        rows, in place. To be called once, after the last micro-step."""
        if not rows.started:  # no sample was there: not even a gradient of zero was written
            rows.gradient.zero_()
        squares = torch.empty(len(rows.index), device=rows.gradient.device)
        inverse = rows.inverse / rows.pending
        self.kernels.tangent(rows.gradient[: len(squares)], rows.unit, inverse, squares)
        return squares.sum()

    def _targets(self, plan: Plan, k: int, padded: int) -> Targets:
        labels, active = plan.labels[k], plan.active[k]
        positives = active.sum(1)
        per_sample = np.where(positives > 0, 1 / max(plan.count, 1), 0.0)
        if self.config.reduction == "positive":
            per_sample = per_sample / np.maximum(positives, 1)
        sample, slot = np.nonzero((labels >= self.lo) & (labels < self.hi))
        wanted = labels[sample, slot].astype(np.int64)
        column = np.searchsorted(plan.ids, wanted)
        here = column < len(plan.ids)
        here[here] = plan.ids[column[here]] == wanted[here]
        order = np.argsort(column[here], kind="stable")
        sample, slot, column = (x[here][order] for x in (sample, slot, column))
        size = tile_rows(len(labels), self.rows.device.type)
        edges = [*range(0, padded, size), padded]
        pairs = np.searchsorted(column, edges).tolist()
        tiles = list(zip(edges[:-1], edges[1:], pairs[:-1], pairs[1:], strict=True))
        return Targets(
            coefficient=self._send(per_sample.astype(np.float32)),
            sample=self._send(sample),
            column=self._send(column),
            slot=self._send(slot),
            active=self._send(active[sample, slot].astype(np.float32)),
            order=self._send(np.argsort(sample, kind="stable")),
            offsets=self._send(np.searchsorted(np.sort(sample), np.arange(len(labels) + 1))),
            tiles=tiles,
            labels=labels.shape[1],
        )

    def _send(self, array: npt.NDArray[np.generic]) -> Tensor:
        return send(torch.from_numpy(np.ascontiguousarray(array)), self.rows.device)
