"""What of a step's collectives runs beside computing, by traces; two processes, gloo.

    torchrun --nproc-per-node 2 benchmarks/overlap.py

Steps of the plain backend, without and with overlap: gradients in one sum, which begins when the
last gradient is there, or in buckets; the embeddings' all-gather waited for, or under the forward
pass of the next micro-step (run.forward_ahead). Of each, the fastest step without the profiler, and
from rank 0's trace, per step: how long collectives were under way, and for how much of that the
main thread was inside a forward or backward pass. gloo computes its sums on cores that the passes
want, too: what is hidden here need not be faster here.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, line
from two_sources import two_sources

from ovtrain.config.model import ModelConfig
from ovtrain.config.train import RunConfig, TrainConfig
from ovtrain.distributed.collectives import broadcast_object
from ovtrain.distributed.context import World, start_world, stop_world
from ovtrain.engine import build as builder
from ovtrain.engine.backend import PlainBackend
from ovtrain.engine.build import Parts
from ovtrain.engine.profiling import Profiling
from ovtrain.observability.profile.trace import PREFIX

Span = tuple[float, float]
SIZE, BUDGET = 56, 64
STEPS = 4


def config_of(given: argparse.Namespace, folder: Path, world: World) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(preset=given.preset),
        data=two_sources(folder, world, size=SIZE, budget=BUDGET),
        run=RunConfig(
            out=str(folder / "run"),
            steps=10**6,
            global_batch=given.batch,
            micro_batch=given.batch // 4,
            backend="ddp",
            precision="fp32",
        ),
    )


def made(config: TrainConfig, world: World, *, bucket: int, ahead: bool) -> Parts:
    own = builder.PlainBackend
    builder.PlainBackend = partial(PlainBackend, bucket=bucket)  # type: ignore[misc]
    try:
        run = replace(config.run, forward_ahead=ahead)
        return builder.build(replace(config, run=run), world)
    finally:
        builder.PlainBackend = own


def merged(spans: Iterable[Span]) -> list[Span]:
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def both(a: list[Span], b: list[Span]) -> float:
    return sum(max(min(x[1], y[1]) - max(x[0], y[0]), 0.0) for x in a for y in b)


def overlapped(path: Path) -> dict[str, dict[str, float]]:
    """By kind of collective, ms per step under way, and of these beside a pass."""
    with gzip.open(path, "rt") as handle:
        events: list[dict[str, Any]] = json.load(handle)["traceEvents"]
    spans = [(e["name"], (e["ts"], e["ts"] + e["dur"])) for e in events if e.get("ph") == "X"]
    passes = merged(s for n, s in spans if n in (PREFIX + "forward", PREFIX + "backward"))
    kinds = sorted({n for n, _ in spans if n.startswith("gloo:")})
    found = {kind: merged(s for n, s in spans if n == kind) for kind in kinds}
    return {
        kind.removeprefix("gloo:"): {
            "under_way_ms": round(sum(b - a for a, b in under) / 1e3 / STEPS, 2),
            "beside_passes_ms": round(both(under, passes) / 1e3 / STEPS, 2),
        }
        for kind, under in found.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--bucket", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    world = start_world()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(broadcast_object(temporary, world.group))
        config = config_of(given, folder, world)
        variants = {
            "one sum": made(config, world, bucket=10**12, ahead=False),
            "buckets": made(config, world, bucket=given.bucket, ahead=False),
            "buckets, forward ahead": made(config, world, bucket=given.bucket, ahead=True),
        }
        batches = {name: next(parts.loader) for name, parts in variants.items()}
        steps = {
            name: partial(parts.step.run, batches[name], 0) for name, parts in variants.items()
        }
        measured = interleaved(steps, warm_up=2, rounds=given.rounds)
        traced: dict[str, Any] = {}
        for name, parts in variants.items():
            path = folder / f"{name}.json.gz"
            Profiling(config, parts, world).trace(STEPS, path)
            traced[name] = overlapped(path) if world.is_main else {}
            parts.loader.close()
    if world.is_main:
        about = vars(given) | {"processes": world.size}
        found = line(
            "overlap", torch=torch.__version__, given=about, measured=measured, traced=traced
        )
        print(found)
    stop_world()
    return 0


if __name__ == "__main__":
    sys.exit(main())
