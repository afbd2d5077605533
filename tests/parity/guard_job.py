"""Run by torchrun on two processes: one sample of one rank goes bad, under each ZeRO stage.

torchrun -m tests.parity.guard_job OUT.json CONFIG.yaml ...

Rank 1's second sample of the third step meets NaN where the config's name says. Per config: what
was raised, and whether each rank's state stayed as it was before that step.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.distributed.collectives import gather_objects
from ovtrain.distributed.context import World, start_world, stop_world
from ovtrain.engine.build import build
from ovtrain.engine.deepspeed_backend import import_deepspeed
from ovtrain.engine.trainer import Trainer
from ovtrain.engine.verdict import NonFiniteLoss
from tests.helpers.training import outside_the_encoder, poison, state_of

STEP, RANK, SAMPLE = 2, 1, 1


def watched(config: TrainConfig, place: str, world: World) -> dict[str, Any]:
    parts = build(config, world)
    trainer = Trainer(config, parts, world)
    step = STEP if world.rank == RANK else -1
    _, name = poison(parts, place, float("nan"), step=step, sample=SAMPLE)
    if (watch := parts.step.replicated) is not None:
        watch.watch()  # behind the poison: hooks see what earlier ones made of a gradient
    dispatched = outside_the_encoder(parts)
    run, states = parts.step.run, list[dict[str, torch.Tensor]]()

    def noted(batch: Any, number: int) -> Any:
        states.append(state_of(parts))
        known = [replace(micro, longest=micro.max_seqlen) for micro in batch.micro]  # on the host
        return run(replace(batch, micro=known), number)

    parts.step.run = noted  # type: ignore[method-assign]
    error = ""
    try:
        trainer.fit()
    except NonFiniteLoss as raised:
        error = str(raised)
    states.append(state_of(parts))
    kept, after = states[STEP], states[STEP + 1]
    changed = [key for key in kept if not torch.equal(kept[key], after[key])]
    moved = [key for key in kept if not torch.equal(kept[key], states[0][key])]
    end = [key for key in kept if not torch.equal(kept[key], states[-1][key])]
    return {
        "error": error,
        "name": name() if world.rank == RANK else "",
        "changed": changed,
        "moved_before": len(moved),
        "changed_at_the_end": len(end),
        "waits": dispatched.waits,
        "launches": dispatched.launches,
        "finite": all(bool(tensor.isfinite().all()) for tensor in states[-1].values()),
    }


def main(out: str, *paths: str) -> None:
    import_deepspeed()
    world = start_world(force_group=True)
    found: dict[str, Any] = {}
    for path in paths:
        place = Path(path).stem.split("-")[0].replace("_", " ")
        own = watched(load(TrainConfig, path), place, world)
        found[Path(path).stem] = gather_objects(own, world.group)
    if world.is_main:
        Path(out).write_text(json.dumps(found))
    stop_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
