"""Row-sparse optimizers of the class centers: work and state updates in proportion to touched rows.

``adamw``: each row counts its own steps, so its bias corrections are those of a row trained alone;
moments age only in the row's steps. ``rowwise_adamw``: one second moment per row, the mean of its
squares. ``rowwise_adagrad``: one sum of mean squares per row, no first moment.

Weight decay is decoupled and lazy, yet exact: a row that steps leave out owes their decay, the
product of (1 - lr * weight_decay), and pays when it is next touched. What it owes is kept in fixed
point, so that it does not depend on when it was saved. Cosines do not see a row's length, but the
gradient does: whoever takes rows out asks ``pending`` for the factor first.

C local rows, D width, S rows of a step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ovtrain.config.head import HeadConfig
from ovtrain.config.optim import OptimConfig
from ovtrain.distributed.context import seed_for
from ovtrain.ops.class_kernels import MASK, RowRule, RowState, RowStep, kernels_for
from ovtrain.schema.errors import CheckpointError

UNITS = 2.0**40
"""Decay owed is an integer of 1 / UNITS: steps add up exactly, in any order."""


class SparseRows:
    """The optimizer of ``rows`` (C, D), which are global rows ``first_row``, ...

    State: ``first`` (C, D) unless adagrad; ``second`` (C, D) or (C,) float32; ``steps`` (C,) int32;
    ``paid`` (C,) int64, what of ``due`` a row has paid.
    """

    def __init__(
        self, rows: Tensor, head: HeadConfig, optim: OptimConfig, *, first_row: int, seed: int
    ) -> None:
        self.weight_decay, self.dense = optim.weight_decay, head.dense_updates
        self.first_row, self.seed = first_row, seed
        self.adagrad = head.optimizer == "rowwise_adagrad"
        keep, take = (1.0, 1.0) if self.adagrad else (optim.beta2, 1 - optim.beta2)
        self.rule = RowRule(optim.beta1, keep, take, optim.eps)
        self.beta2 = optim.beta2
        first = None
        if not self.adagrad:
            dtype = torch.bfloat16 if head.moments == "bf16" else torch.float32
            first = torch.zeros(rows.shape, dtype=dtype, device=rows.device)
        second_shape = rows.shape if head.optimizer == "adamw" else rows.shape[:1]
        second = torch.zeros(second_shape, device=rows.device)
        self.held = RowState(rows, first, second)
        self.steps = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)
        self.paid = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        self.due = torch.zeros((), dtype=torch.int64, device=rows.device)
        self.kernels = kernels_for(rows.device.type)

    @torch.no_grad()
    def pending(self, index: Tensor) -> Tensor:
        """(S,) float32 factors that rows ``index`` still have to be multiplied by."""
        owed = self.due - self.paid[index]
        return torch.exp(owed.double() / -UNITS).float()

    @torch.no_grad()
    def step(self, index: Tensor, gradient: Tensor, lr: float, step: int, clip: Tensor) -> None:
        """Update rows ``index`` (S,), unique, with ``gradient`` (>= S, D) times ``clip`` () in
        training step ``step``. ``lr`` * weight_decay must be below 1. Where ``clip`` is NaN the
        step is refused: nothing changes, and nobody waits for the device to say so."""
        if self.dense:
            index, gradient = self._all(index, gradient)
        taken = ~clip.isnan()
        owing = round(-math.log1p(-lr * self.weight_decay) * UNITS)
        self.due = self.due + owing * taken
        decay = self.pending(index)
        self.paid[index] = torch.where(taken, self.due, self.paid[index])
        count = self.steps[index] + taken.int()
        self.steps[index] = count
        key = seed_for(self.seed, "rounding", step) & MASK
        own = RowStep(
            index, gradient, clip, lr, decay, *self._corrections(count), self.first_row, key
        )
        self.kernels.update(self.held, self.rule, own)

    def _corrections(self, count: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones(count.shape, device=count.device)
        if self.adagrad:
            return one, one
        power = count.double()
        first, second = (1 / (1 - beta**power) for beta in (self.rule.beta1, self.beta2))
        return first.float(), second.float()

    def _all(self, index: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The dense reference: every row, with a gradient of zero where it was not drawn."""
        whole = gradient.new_zeros(self.held.rows.shape)
        whole[index] = gradient[: len(index)]
        return torch.arange(len(whole), device=whole.device), whole

    def state(self) -> dict[str, Tensor]:
        """Row-aligned tensors, rows included: what a checkpoint writes per class range. ``owed``
        (C,) int64 is decay that was not applied yet."""
        found = {"rows": self.held.rows, "second": self.held.second, "steps": self.steps}
        if self.held.first is not None:
            found["first"] = self.held.first
        return found | {"owed": self.due - self.paid}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Copy in place, so that views held elsewhere stay valid. Raises CheckpointError where the
        state is another optimizer's."""
        own = self.state()
        wrong = {n for n in {*own, *state} if n not in own or n not in state}
        wrong |= {n for n in {*own} - wrong if own[n].shape != state[n].shape}
        if wrong:
            raise CheckpointError(
                "head rows",
                f"saved with another optimizer or width (differing: {', '.join(sorted(wrong))})",
                allowed="state of " + ", ".join(f"{n} {tuple(t.shape)}" for n, t in own.items()),
                fix="keep head.optimizer of the run, or start a new run.out",
            )
        for name, tensor in own.items():
            if name != "owed":
                tensor.copy_(state[name])
        self.due.zero_()
        self.paid.copy_(-state["owed"])
