"""What becomes of steps that were refused (gate.py), once the host has read of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

from ovtrain.config.train import TrainConfig
from ovtrain.data.loader import StepBatch
from ovtrain.distributed.collectives import gather_objects
from ovtrain.distributed.context import World
from ovtrain.engine.build import Parts
from ovtrain.engine.state import TrainState
from ovtrain.engine.step import StepResult
from ovtrain.schema.errors import OvtrainError

NAMED = 10
"""Samples that are named of one step; all are counted."""
log = logging.getLogger(__name__)


class NonFiniteLoss(OvtrainError):
    """Training met a NaN, an infinity or an embedding of zero, and stopped before the update."""


class Verdict:
    """``fault``: told (kind, step, message) of each refused step."""

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        world: World,
        fault: Callable[[str, int, str], None],
    ) -> None:
        self.config, self.parts, self.world, self.fault = config, parts, world, fault

    def judge(
        self,
        state: TrainState,
        step: int,
        values: Mapping[str, float],
        result: StepResult,
        batch: StepBatch,
    ) -> None:
        """Count update ``step`` (1-based), whose metrics were ``values``, if it was skipped.
        Collective where it was refused. Raises NonFiniteLoss if the run is to stop."""
        guards = self.config.guards
        if not values["refused"]:
            state.skipped_in_a_row = 0
            return
        state.skipped += 1
        state.skipped_in_a_row += 1
        found = f"step {step}: {self._culprits(values, result, batch)}"
        if guards.on_nonfinite == "skip" and state.skipped_in_a_row < guards.max_skipped:
            log.warning("%s; nothing was updated", found)
            self.fault("skipped", step, found)
            return
        self.fault("nonfinite", step, found)
        raise NonFiniteLoss(
            self.config.run.out,
            found + "; stopped before the update",
            fix="the newest checkpoint is from before. Look at these samples; if they are sound, "
            "start another run.out with a lower optim.lr and run.init_from=this run, or leave such "
            "steps out with guards.on_nonfinite=skip",
        )

    def _culprits(self, values: Mapping[str, float], result: StepResult, batch: StepBatch) -> str:
        """Collective: the samples of all ranks, or else the heads, that were not finite."""
        own = (self._samples(result, batch), self._heads(result))
        told = gather_objects(own, self.world.group)
        found = [(rank, name) for rank, (part, _) in enumerate(told) for name in part]
        # Tensor ranks meet the same samples: the first that tells of one is named.
        first = {name: rank for rank, name in reversed(found)}
        samples = [f"rank {rank}, {name}" for rank, name in found if first[name] == rank]
        heads = [name for _, part in told for name in part]
        shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
        if not samples:
            return f"not finite: {'; '.join(heads) or 'the encoder'} ({shown})"
        named = "; ".join(samples[:NAMED]) + (", ..." if samples[NAMED:] else "")
        return (
            f"{len(samples)} samples with an embedding that is zero or not finite, or with a "
            f"gradient that is not: {named} ({shown})"
            + (f"; not finite, too: {'; '.join(heads)}" if heads else "")
        )

    def _samples(self, result: StepResult, batch: StepBatch) -> list[str]:
        loader = self.parts.loader
        return [
            f"source {loader.sources[int(micro.source[i])].config.name}, "
            f"sample {loader.name_of(int(micro.source[i]), int(micro.key[i]))}"
            for micro, sound in zip(batch.micro, result.sound, strict=True)
            for i in (~sound.cpu()).nonzero().flatten().tolist()
        ]

    def _heads(self, result: StepResult) -> list[str]:
        return [
            f"rank {self.world.rank}, class rows of {head.head.source}"
            for head, squares in zip(self.parts.heads, result.squares.tolist(), strict=True)
            if not math.isfinite(squares)
        ]
