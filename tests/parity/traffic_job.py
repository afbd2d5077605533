"""What steps of a training run exchange, and what its processes then hold; part of job.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.config.validate import validate
from ovtrain.distributed.buckets import GradientBuckets
from ovtrain.distributed.collectives import gather_objects
from ovtrain.distributed.context import World
from ovtrain.distributed.traffic import Traffic
from ovtrain.engine import backend, deepspeed_backend
from ovtrain.engine.build import Parts, build

STEPS = 3
LIMITS = (
    "stage3_prefetch_bucket_size",
    "stage3_max_live_parameters",
    "reduce_bucket_size",
    "sub_group_size",
)
"""DeepSpeed's; ours, the plain backend's bucket, is the last."""


def stored(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of the tensors' memory, shared memory once."""
    found = {}
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            memory = tensor.untyped_storage()
            found[memory.data_ptr()] = memory.nbytes()
    return sum(found.values())


def held(parts: Parts) -> dict[str, Any]:
    """Bytes that this process holds, by kind."""
    of: Any = parts.step.backend
    weights: list[Any] = list(parts.encoder.parameters())
    divided = hasattr(of, "stage")
    optimizer = of.zero.optimizer if divided else of.optimizer
    return {
        "weights": stored([*weights, *(getattr(p, "ds_tensor", None) for p in weights)]),
        "master": stored(of.stage.partitions()) if divided else 0,
        "moments": stored(t for state in optimizer.state.values() for t in state.values()),
        "rows": {h.head.source: stored([h.head.rows]) for h in parts.heads},
        "row_state": {
            h.head.source: stored(
                [
                    h.optimizer.held.first,
                    h.optimizer.held.second,
                    h.optimizer.steps,
                    h.optimizer.paid,
                ]
            )
            for h in parts.heads
        },
    }


def measured(path: str, limits: str, world: World) -> list[dict[str, Any]]:
    """Collective: of each rank, bytes and calls by kind of every step, with the tokens and samples
    of its micro-steps, and what the rank holds after. ``limits``: DeepSpeed's, as the numbers of
    LIMITS."""
    config = load(TrainConfig, path)
    validate(config, path)
    with _limited(limits):
        parts = build(config, world)
    counted = list[dict[str, Any]]()
    for step in range(STEPS):
        batch = next(parts.loader)
        with Traffic() as traffic:
            parts.step.run(batch, step)
        held_by = [(len(micro.patches), micro.samples) for micro in batch.micro]
        numbers = {"bytes": dict(traffic.bytes), "calls": dict(traffic.calls)}
        counted.append(numbers | {"held": held_by})
    parts.loader.close()
    return gather_objects({"steps": counted, "held": held(parts)}, world.group)


@contextmanager
def plain_buckets(numel: int) -> Iterator[None]:
    """Meanwhile the plain backend is made with buckets of so many numbers."""
    backend.GradientBuckets = lambda p, group, _: GradientBuckets(p, group, numel)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        backend.GradientBuckets = GradientBuckets  # type: ignore[misc]


@contextmanager
def _limited(limits: str) -> Iterator[None]:
    """Meanwhile both backends are given limits for which a small encoder is a large one."""
    own = deepspeed_backend.deepspeed_json
    *given, plain = map(int, limits.split(","))
    numbers = dict(zip(LIMITS, given, strict=True))

    def made(*asked: Any) -> dict[str, Any]:
        found = own(*asked)
        found["zero_optimization"] |= numbers
        return found

    deepspeed_backend.deepspeed_json = made
    try:
        with plain_buckets(plain):
            yield
    finally:
        deepspeed_backend.deepspeed_json = own
