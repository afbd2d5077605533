"""Every encoder gradient of every step, whole, whatever the ranks hold of it.

Taken where autograd hands it over, before a backend reduces, scatters or scales it: summed here
over micro-steps and data ranks, and put together from tensor ranks' parts. Parameters that tensor
ranks hold whole must have equal gradients, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovtrain.config.identity import config_hash
from ovtrain.config.train import TrainConfig
from ovtrain.data.loader import StepBatch
from ovtrain.distributed.collectives import all_gather_slots, all_reduce
from ovtrain.distributed.parallelize import Division
from ovtrain.engine.build import Parts
from ovtrain.engine.deepspeed_backend import import_deepspeed
from ovtrain.engine.step import StepResult

Step = dict[str, Tensor]
REFERENCE = "gradients.pt"
"""Those of the plain single process, beside the runs."""
GRADIENTS, WEIGHTS, RESTORED = "gradients.json", "weights.pt", "restored.json"
"""In a run's folder: what ``compared`` found; the encoder of the ranks that have just trained; and
what of it differed, when the run began, from the checkpoint that it goes on from."""


class Gradients:
    """``take``: gets each step's."""

    def __init__(self, parts: Parts, take: Callable[[Step], None]) -> None:
        self.parts, self.take = parts, take
        self.scale = 1.0
        if hasattr(parts.step.backend, "zero"):  # its scalar was multiplied: it averages
            self.scale = 1 / parts.mesh.data.size
        self.sums: Step = {}
        for name, parameter in parts.encoder.named_parameters():
            parameter.register_hook(partial(self._add, name))
        self.run = parts.step.run
        parts.step.run = self._run  # type: ignore[method-assign]

    def _add(self, name: str, gradient: Tensor) -> None:
        own = gradient.detach().float()
        self.sums[name] = self.sums[name] + own if name in self.sums else own.clone()

    def _run(self, batch: StepBatch, step: int) -> StepResult:
        self.sums = {}
        result = self.run(batch, step)
        self.take({name: self._summed(name) for name in sorted(self.sums)})
        return result

    def _summed(self, name: str) -> Tensor:
        own = all_reduce(self.sums[name] * self.scale, self.parts.mesh.data.group)
        return whole(self.parts, name, own)


def whole(parts: Parts, name: str, own: Tensor) -> Tensor:
    """Collective: what tensor ranks hold of a parameter's values or gradient, put together; equal
    on all of them, to the bit, where each holds it whole."""
    division: Division = parts.step.backend.division  # type: ignore[attr-defined]
    held = all_gather_slots(own.reshape(1, -1), 1, parts.mesh.tensor.group)
    part, shape = division.parts.get(name), division.shapes[name]
    if part is None:
        assert all(torch.equal(other, held[0]) for other in held), f"{name} differs"
        return own
    blocks = [x.view(part.shape(shape)).chunk(part.cut.stacks) for x in held]
    dim = 1 if part.cut.kind == "row" else 0
    return torch.cat([torch.cat(stack, dim) for stack in zip(*blocks, strict=True)])


def running_weights(parts: Parts) -> Step:
    """Collective: the encoder that the ranks train, whole; none of it has been read from a file."""
    zero: Any = import_deepspeed().zero
    parameters = dict(parts.encoder.named_parameters())
    with zero.GatheredParameters(list(parameters.values())):
        return {name: whole(parts, name, p.detach().clone()) for name, p in parameters.items()}


def keep(folder: Path, config: TrainConfig, gradients: list[Step]) -> None:
    """As the reference of all runs of this config."""
    torch.save({"of": config_hash(config), "steps": gradients}, folder / REFERENCE)


def compared(parts: Parts, config: TrainConfig, folder: Path) -> dict[str, float] | None:
    """By name, the largest |g - reference| / |reference| (2-norms) of any step; filled as ``parts``
    train on the reference's config in another layout. None for another config."""
    kept = torch.load(folder / REFERENCE, mmap=True)
    if kept["of"] != config_hash(config):
        return None
    expected: list[Step] = kept["steps"]
    worst: dict[str, float] = {}

    def take(found: Step) -> None:
        if not parts.mesh.world.is_main:  # all ranks hold the same
            return
        wanted = expected.pop(0)
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            error = (gradient - wanted[name]).norm() / wanted[name].norm()
            worst[name] = max(worst.get(name, 0.0), error.item())

    Gradients(parts, take)
    return worst
