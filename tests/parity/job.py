"""Run by torchrun: the collectives' checks and several training runs in one launch.

torchrun -m tests.parity.job OUT.json CONFIG.yaml[=CHECKPOINT] traffic:CONFIG.yaml=LIMITS ...

A run with a CHECKPOINT, the step folder of another run, goes on from it. Of a ``traffic`` run some
steps' collectives are counted (traffic_job.py).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ovtrain.checkpoint.encoder_shards import EncoderReader
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.config.validate import validate
from ovtrain.data.batch import PackedSample, pack
from ovtrain.data.faults import BadSample
from ovtrain.data.loader import StepBatch
from ovtrain.distributed import collectives
from ovtrain.distributed.comm_time import CLOCK, DEEPSPEED, measure_methods
from ovtrain.distributed.context import World, start_world, stop_world
from ovtrain.engine.agreement import agreed
from ovtrain.engine.build import Parts, build
from ovtrain.engine.deepspeed_backend import import_deepspeed
from ovtrain.engine.run_directory import describe
from ovtrain.engine.step import StepResult
from ovtrain.engine.trainer import Trainer
from ovtrain.heads.class_sharded import ClassShardedHead, Plan
from tests.helpers.training import begin_at
from tests.parity.gradients import GRADIENTS, RESTORED, WEIGHTS, compared, running_weights
from tests.parity.traffic_job import measured, plain_buckets

SEVERAL = 4 * 10**5
"""Numbers in a bucket of gradients: the encoders of the runs fill several."""


def gather_gradient(world: World) -> list[float]:
    """Rank r holds r + 1 rows of 3; each rank's loss is (rank + 1) * sum(w * gathered), so each
    row's
    gradient must be its weight times the sum of (rank + 1)."""
    rows = world.size + 1
    mine = torch.ones(world.rank + 1, 2)
    gathered = collectives.all_gather_slots(mine, rows, world.group)
    weights = torch.arange(gathered.numel()).view_as(gathered).float()
    found = collectives.reduce_scatter_slots((world.rank + 1) * weights, rows, world.group)
    first = world.rank * rows
    factor = sum(range(1, world.size + 1))
    expected = weights[first : first + rows] * factor
    return [(found - expected).abs().max().item(), gathered.sum().item()]


def check_collectives(world: World) -> dict[str, Any]:
    group, rank = world.group, world.rank
    error, total = gather_gradient(world)
    ints = collectives.all_gather_padded(torch.full((rank + 1,), rank), world.size, group, fill=-1)
    number = torch.tensor(float(rank + 1))
    return {
        "gather_gradient_error": collectives.gather_objects(error, group),
        "gathered_sum": total,
        "padded": ints.tolist(),
        "sum": collectives.all_reduce(number, group).item(),
        "max": collectives.all_reduce(number, group, "max").item(),
        "left_alone": number.item(),
        "broadcast": collectives.broadcast_object({"from": rank}, group),
    }


def check_agreement(world: World) -> dict[str, Any]:
    """Every rank reads samples of 2, 3 and 4 tokens, but for the one that has its rank's number;
    and one that none can read. What each then holds, and who tells of what."""

    def sample(number: int) -> PackedSample:
        rows = number + 2
        patches, nowhere = np.full((rows, 12), number, np.uint8), np.zeros((rows, 3), np.int32)
        return PackedSample(patches, nowhere, np.array([number], np.int32), 1, 0, 7 + number)

    grey = PackedSample(np.zeros((1, 12), np.uint8), np.zeros((1, 3)), np.empty(0), 0, 0, 0)
    given = [replace(grey, source=1) if n == world.rank else sample(n) for n in range(3)]
    lost = [BadSample("video", f"a.tar/{n}", f"timed out ({world.rank})") for n in (world.rank, 9)]
    batch = StepBatch([pack(given), pack([replace(grey, source=1)])], [3, 1], [], lost)
    found = agreed(batch, grey, world)
    same = agreed(found, grey, world)
    told = {
        "tokens": [micro.cu_seqlens.diff().tolist() for micro in found.micro],
        "labels": found.micro[0].labels.tolist(),
        "source": [micro.source.tolist() for micro in found.micro],
        "bad": [[one.name, one.reason] for one in found.bad],
        "settled": same is found,
    }
    return {"agreement": collectives.gather_objects(told, world.group)}


def held_up(world: World, reduce: Callable[[torch.Tensor], object]) -> list[float]:
    """Counted communication (ms) per rank of one reduction that rank r comes to 100 r ms late."""
    collectives.barrier(world.group)
    CLOCK.read(1)
    time.sleep(0.1 * world.rank)
    reduce(torch.ones(1))
    return collectives.gather_objects(CLOCK.read(1)["comm_ms"], world.group)


def check_time(world: World) -> dict[str, Any]:
    """From here on DeepSpeed's collectives are measured, in the runs that follow, too."""
    deepspeed = import_deepspeed()
    deepspeed.init_distributed("gloo")
    comm: Any = import_module("deepspeed.comm.comm")
    measure_methods(comm.cdb, DEEPSPEED)
    return {
        "own_ms": held_up(world, lambda x: collectives.all_reduce(x, world.group)),
        "deepspeed_ms": held_up(world, comm.all_reduce),
        "deepspeed_async_ms": held_up(world, lambda x: comm.all_reduce(x, async_op=True).wait()),
    }


def train(path: str, begin: str, world: World) -> None:
    config = load(TrainConfig, path)
    validate(config, path)
    if begin:
        if world.is_main:
            begin_at(Path(config.run.out), Path(begin))
        dist.barrier(world.group)
    with plain_buckets(SEVERAL):
        parts = build(config, world)
    if begin:
        restored = differing(parts, Path(begin))
        if world.is_main:
            (Path(config.run.out) / RESTORED).write_text(json.dumps(restored))
    if world.is_main:
        describe(config, parts, world)
    met = Trace(parts)
    out = Path(config.run.out)
    worst = None if begin else compared(parts, config, out.parent)
    assert Trainer(config, parts, world).fit()
    weights = running_weights(parts)
    if world.is_main:
        (out / GRADIENTS).write_text(json.dumps(worst))
        torch.save(weights, out / WEIGHTS)
    told = collectives.gather_objects(met.steps, world.group)
    if world.is_main:
        (out / "trace.json").write_text(json.dumps(joined(told)))
        (out / "reduced.json").write_text(json.dumps(met.reduced))


def differing(parts: Parts, checkpoint: Path) -> list[str]:
    """Collective: parameters of the ranks, back from a checkpoint, that are not those in it."""
    assert parts.checkpoints.resume()
    held = running_weights(parts)
    saved = EncoderReader(checkpoint).whole("param", {n: t.shape for n, t in held.items()})
    return [name for name in saved | held if not torch.equal(held[name], saved[name])]


def joined(told: list[list[dict[str, list[int]]]]) -> list[dict[str, list[int]]]:
    """Per step, what the ranks met, one behind the other."""
    return [
        {name: [x for own in ranks for x in own[name]] for name in ranks[0]}
        for ranks in zip(*told, strict=True)
    ]


class Trace:
    """What a rank meets in each step: ``samples/SOURCE``, keys in the order of the stream, and
    ``rows/SOURCE``, the class rows that are drawn. ``reduced``: entries that all-reduces took."""

    def __init__(self, parts: Parts) -> None:
        self.steps: list[dict[str, list[int]]] = []
        self.reduced: list[int] = []
        self.parts, self.run = parts, parts.step.run
        parts.step.run = self._run  # type: ignore[method-assign]
        for source in parts.heads:
            self._watch(source.head)

    def _run(self, batch: StepBatch, step: int) -> StepResult:
        met = self.steps
        met.append({})
        for source in self.parts.loader.sources:
            # Tensor ranks read the same samples.
            own = batch.micro if self.parts.mesh.speaks else []
            keys = [m.key[(m.source == source.number) & (m.key != 0)] for m in own]
            met[-1][f"samples/{source.config.name}"] = torch.cat([*keys, NOTHING]).tolist()
        before = REDUCED[0]
        result = self.run(batch, step)
        self.reduced.append(REDUCED[0] - before)
        return result

    def _watch(self, head: ClassShardedHead) -> None:
        plan = head.plan

        def noted(*given: Any) -> Plan:
            made = plan(*given)
            self.steps[-1][f"rows/{head.source}"] = made.ids.tolist()
            return made

        head.plan = noted  # type: ignore[method-assign]


NOTHING = torch.zeros(0, dtype=torch.int64)
REDUCED = [0]


def count_reductions() -> None:
    """Entries that this process all-reduces from now on, DeepSpeed's among them, in REDUCED."""
    own = dist.all_reduce

    def counted(tensor: torch.Tensor, *given: Any, **named: Any) -> Any:
        REDUCED[0] += tensor.numel()
        return own(tensor, *given, **named)

    dist.all_reduce = counted


def main(out: str, *runs: str) -> None:
    import_deepspeed()  # before the group, as the training entry does
    count_reductions()
    world = start_world(force_group=True)
    found = check_collectives(world) | check_agreement(world) | check_time(world)
    found["traffic"] = {}
    for run in runs:
        path, _, more = run.partition("=")
        if (counted := path.removeprefix("traffic:")) != path:
            found["traffic"][Path(counted).stem] = measured(counted, more, world)
        else:
            train(path, more, world)
    if world.is_main:
        Path(out).write_text(json.dumps(found))
    stop_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
