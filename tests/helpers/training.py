"""A training set-up of two sources on tiny pictures, in a temporary folder."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from ovtrain.checkpoint import storage
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.config.validate import validate
from ovtrain.data.batch import PackedBatch
from ovtrain.data.loader import StepBatch
from ovtrain.data.shards import ShardReader
from ovtrain.distributed.context import World
from ovtrain.engine.build import Parts, build
from ovtrain.engine.run_directory import claim, describe
from ovtrain.engine.step import StepResult
from ovtrain.engine.trainer import Trainer
from ovtrain.observability.history import read_rows
from tests.helpers.benchmark_modules import benchmark_module
from tests.helpers.shards import write_labels, write_shards

MEASURED = (
    "time",
    "samples_per_s",
    "tokens_per_s",
    "flops_per_s",
    "mfu",
    "data_wait",
    "data_wait_ms",
    "data_wait_ms_max",
    "batches_ready",
    "step_ms",
    "comm_ms",
    "comm",
    "rank_ms_max",
    "rank_ms_median",
    "slowest_rank",
    "memory_mib_max",
    "memory_rank",
    "save_stall_ms",
)
"""Fields of a metrics row that say how fast it went, not what was computed."""


def world(rank: int = 0, size: int = 1) -> World:
    """One rank's place without a process group: enough for whatever does not communicate."""
    return World(rank, rank, size, torch.device("cpu"), None)


def write_setup(folder: Path, samples: int = 24) -> None:
    """Shards and labels of a video and an image source."""
    for kind, classes in (("video", 40), ("image", 23)):
        manifest = write_shards(folder / kind, kind, samples)
        keys = ShardReader(folder / kind).keys
        write_labels(folder / f"{kind}-labels", manifest, keys, classes)


def base_config(
    folder: Path,
    recompute: int = 0,
    heads: dict[str, Any] | None = None,
    guards: dict[str, Any] | None = None,
    attention_heads: int = 6,
    model: dict[str, Any] | None = None,
    **run: Any,
) -> dict[str, Any]:
    return {
        "model": {"preset": "nano", "recompute": recompute, "heads": attention_heads}
        | (model or {}),
        "data": {
            "sources": [
                {
                    "name": kind,
                    "shards": str(folder / kind),
                    "labels": str(folder / f"{kind}-labels"),
                }
                for kind in ("video", "image")
            ],
            "size": 28,
            "clip_frames": 8,
            "token_budget": 8,
            "chunks": 2,
            "workers": 0,
            "augment": {"gain": 0.2, "shift": 2, "token_keep": 0.75},
        },
        "head": {"sample_rate": 0.3},
        "heads": heads or {},
        "guards": guards or {},
        "optim": {"lr": 1e-3, "clip": 0.5},
        "run": {
            "steps": 20,
            "global_batch": 8,
            "precision": "fp32",
            "log_every": 1,
            "checkpoint_every": 5,
            "out": str(folder / "run"),
        }
        | run,
    }


def write_config(folder: Path, name: str, **run: Any) -> str:
    """Path of a YAML whose run section has ``run`` on top (``recompute``, ``heads``, ``guards``
    and ``model`` where they belong), its output in ``folder/name``."""
    path = folder / f"{name}.yaml"
    settings = {"out": str(folder / name)} | run
    path.write_text(OmegaConf.to_yaml(base_config(folder, **settings)))
    return str(path)


def typed_config(folder: Path, *overrides: str, **run: Any) -> TrainConfig:
    """A validated config of the set-up in ``folder``."""
    config = load(TrainConfig, write_config(folder, "typed", **run), overrides)
    validate(config, "typed")
    return config


def small(folder: Path, out: Path, *overrides: str, **run: Any) -> TrainConfig:
    """Four steps on the plain backend, saved at the end alone."""
    settings = {"backend": "ddp", "steps": 4, "checkpoint_every": 100, "out": str(out)} | run
    return typed_config(folder, *overrides, **settings)


def fit(config: TrainConfig, watch: Callable[[Parts], object] | None = None) -> Parts:
    """Train in this process, without a process group; its parts after the last step. ``watch``
    gets them before the first."""
    with keep_signals():
        claim(config)
        parts = build(config, world())
        describe(config, parts, world())
        if watch is not None:
            watch(parts)
        assert Trainer(config, parts, world()).fit()
    return parts


def begin_at(out: Path, step: Path) -> None:
    """A run into ``out`` will go on from ``step``, another run's checkpoint folder."""
    checkpoints = out / "checkpoints"
    shutil.copytree(step, checkpoints / step.name)
    (checkpoints / storage.LATEST).write_text(step.name + "\n")


def metrics(out: Path) -> list[dict[str, Any]]:
    """Metric rows; every line must parse."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "event" not in row]


def logged(out: Path) -> int:
    """Metric rows of a run that may be writing one."""
    return len(read_rows(out / "metrics.jsonl"))


def computed(out: Path) -> list[dict[str, Any]]:
    """Metrics rows without the fields that measure time."""
    return [
        {k: v for k, v in row.items() if k not in MEASURED and not k.startswith("data_ms/")}
        for row in metrics(out)
    ]


@contextmanager
def keep_signals() -> Iterator[None]:
    """Whatever a trainer does to the handlers ends with the block."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def state_of(parts: Parts) -> dict[str, torch.Tensor]:
    """Copies of all that this rank would save."""
    return {
        f"{file}/{key}": tensor.clone()
        for part in parts.checkpoints.parts.values()
        for file, tensors in part.files().items()
        for key, tensor in tensors.items()
    }


def poison(
    parts: Parts, place: str, value: float, *, step: int, sample: int
) -> tuple[Callable[[], dict[str, torch.Tensor]], Callable[[], str]]:
    """In the first micro-step of update ``step`` (0-based) the ``sample``-th sample of this rank
    meets ``value`` in its embedding, in its loss's gradient or in the gradient that leaves the last
    layer; or a parameter's gradient does, which is no sample's. Returns what gives the state before
    that update and the words that should name the sample."""
    seen: dict[str, Any] = {}
    backend, sources, run = parts.step.backend, parts.step.sources, parts.step.run
    forward, finish = backend.forward, sources.finish

    def noted_run(batch: StepBatch, number: int) -> StepResult:
        seen["now"] = number == step
        if seen["now"]:
            seen["state"] = state_of(parts)
        return run(batch, number)

    def hurt(x: torch.Tensor, rows: slice) -> torch.Tensor:
        factor = torch.ones(len(x), *[1] * (x.ndim - 1), dtype=x.dtype)
        factor[rows] = value
        return x * factor

    def poisoned_forward(batch: PackedBatch) -> torch.Tensor:
        if not seen["now"]:
            return forward(batch)
        source = parts.loader.sources[int(batch.source[sample])]
        key = parts.loader.name_of(source.number, int(batch.key[sample]))
        seen["name"] = f"source {source.config.name}, sample {key}"
        if place == "parameter gradient":
            seen["parameter"] = True
        first, last = batch.cu_seqlens[sample : sample + 2].tolist()
        if place == "layer gradient":

            def gradient(_module: object, _inputs: object, output: torch.Tensor) -> None:
                output.register_hook(lambda g: hurt(g, slice(first, last)))

            handle = parts.encoder.layers[-1].register_forward_hook(gradient)
            pooled = forward(batch)
            handle.remove()
        else:
            pooled = forward(batch)
        if place == "embedding":
            pooled = hurt(pooled, slice(sample, sample + 1))
        return pooled

    def poisoned_loss(*given: Any) -> Any:
        result = finish(*given)
        if seen["now"] and place == "loss gradient":
            result = replace(result, gradient=hurt(result.gradient, slice(sample, sample + 1)))
        seen["now"] = False  # one micro-step of it
        return result

    def poisoned_parameter(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * value if seen.pop("parameter", False) else gradient

    if place == "parameter gradient":
        parts.encoder.layernorm_pre.bias.register_hook(poisoned_parameter)
    parts.step.run = noted_run  # type: ignore[method-assign]
    backend.forward = poisoned_forward  # type: ignore[method-assign]
    sources.finish = poisoned_loss  # type: ignore[method-assign]
    return lambda: seen["state"], lambda: seen["name"]


def outside_the_encoder(parts: Parts) -> Any:
    """Counts what steps dispatch from the embeddings to the end of the update, the encoder's own
    passes left out (``benchmarks/dispatched.py``)."""
    mode = benchmark_module("dispatched").Dispatched()
    step, backend = parts.step, parts.step.backend

    def paused(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if entered:
                entered.pop().__exit__(None, None, None)
            result = work(*given, **named)
            entered.append(mode.__enter__())
            return result

        return call

    def left(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            entered.pop().__exit__(None, None, None)
            return work(*given)

        return call

    entered: list[Any] = []
    backend.forward = paused(backend.forward)  # type: ignore[method-assign]
    backend.backward = paused(backend.backward)  # type: ignore[method-assign]
    step._metrics = left(step._metrics)  # type: ignore[method-assign]
    return mode
