"""A whole stage-2 step, data and all, against a rebuild of the published training loop.

    python benchmarks/step.py [--clips 16] [--rounds 3] [--workers 2] [--attention auto]
                              [--device cpu]

A step takes as many images as clips and half as many documents (the released micro-batch is
16 : 8 : 16), clips in views of 50 / 37.5 / 12.5 %, exactly: a block of 16 clips. 224 x 224, patches
of 14, 2,048 tokens of every clip, 15,625 classes per head (a 128th of 2 M), all labels here; ten
labels per image and clip, a hundred per document.

``ours`` is what ``ovtrain.engine.build`` makes (backend ``ddp``, bf16), fed by its ``Loader`` from
shards. ``published`` is ``peer_step.py``, whose tables say what it does and where that is from.
Both have the same files, labels, sizes and threads, and as many workers for data, which run only
while a step waits for its batch: on a GPU, too, nothing is loaded ahead. Both are bfloat16 under
autocast with float32 parameters; rotations differ (``released`` there, ``rotary`` here), at equal
cost. Attention is torch's kernel there and the encoder's choice here; ``--attention sdpa`` gives
both torch's. Each step ends with the update of everything.

Rounds are interleaved. ``step`` is the whole; ``data`` the wait for the batch; ``encoder`` its
passes, for the published loop with the gathers of patches; ``head`` draws, losses, gradients and
optimizers of the centers, for ours whatever else the step does, too; ``update`` clipping and the
encoder's optimizer. They are read in the same rounds; on a GPU each part ends with a
synchronisation. ``over_published`` divides the fastest.

The allocator of glibc gives nothing back to the system, on both sides: the peer's large arrays are
made anew in every step, and fresh pages would cost it several times more.

``--device cuda`` takes ViT-L; that has not been run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import step_media
import torch
from head import KEEP
from measure import interleaved, line
from peer_data import DenseLoader
from peer_encoder import PeerEncoder, copy_weights
from peer_heads import PeerHead
from peer_step import PeerStep
from step_media import Media
from torch import Tensor

from ovtrain.config.data import AugmentConfig, DataConfig, SourceConfig
from ovtrain.config.model import ModelConfig
from ovtrain.config.optim import OptimConfig
from ovtrain.config.train import RunConfig, TrainConfig
from ovtrain.data.loader import StepBatch
from ovtrain.data.views import VIEWS
from ovtrain.distributed.context import World
from ovtrain.engine.build import Parts, build
from ovtrain.engine.step import TrainStep
from ovtrain.ops.varlen_attention import choose_backend
from ovtrain.schema.sample import Kind

CLASSES, BUDGET, CHUNKS, LR = 15_625, 2048, 8, 1e-4
VIEW_SIXTEENTHS = (8, 6, 2)
KINDS: tuple[Kind, ...] = ("image", "document", "video")
PARTS = ("data", "encoder", "head", "update")


class Stopwatch:
    """Milliseconds by name; on a GPU a name's work is waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, defaultdict[str, list[float]](list)
        self.current: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.current[name] += 1e3 * (time.perf_counter() - start)

    def end_round(self) -> None:
        for name in PARTS:
            self.times[name].append(self.current[name])
            self.current[name] = 0.0

    def read(self, warm_up: int) -> dict[str, dict[str, float]]:
        kept = {name: times[warm_up:] for name, times in self.times.items()}
        return {
            name: {"min_ms": round(min(x), 3), "median_ms": round(float(np.median(x)), 3)}
            for name, x in kept.items()
        }


class Ours:
    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.parts: Parts = build(config, World(0, 0, 1, device, None))
        self.watch, self.number = Stopwatch(device), 0
        self.views = [0] * len(VIEWS)
        _time_parts(self.parts.step, self.watch)

    def run(self) -> StepBatch:
        with self.watch("data"):
            batch = next(self.parts.loader)
        before = dict(self.watch.current)
        with self.watch("head"):  # what the parts inside do not take
            result = self.parts.step.run(batch, self.number)
        inside = sum(self.watch.current[n] - before[n] for n in ("encoder", "update"))
        self.watch.current["head"] -= inside
        self.watch.end_round()
        self.number += 1
        for micro in batch.micro:
            for view in micro.view.tolist():
                self.views[view] += 1
        assert not batch.bad, batch.bad
        assert all(value.isfinite() for value in result.metrics.values()), result.metrics
        return batch


def _time_parts(step: TrainStep, watch: Stopwatch) -> None:
    """Read the encoder's passes and update where the step calls them."""
    backend: Any = step.backend
    backend.forward = _timed(backend.forward, watch, "encoder")
    backend.backward = _timed(backend.backward, watch, "encoder")
    backend.step = _timed(backend.step, watch, "update")


def _timed(call: Callable[..., Any], watch: Stopwatch, part: str) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        with watch(part):
            return call(*args, **options)

    return timed


class Published:
    def __init__(
        self, media: Media, config: TrainConfig, device: torch.device, workers: int
    ) -> None:
        size, clips = config.model.size, len(media.files["video"])
        codec, frames, tiling = (count * clips // 16 for count in VIEW_SIXTEENTHS)
        encoder = PeerEncoder(
            size.width, size.depth, size.heads, size.mlp, patch=config.model.patch
        )
        heads = [PeerHead(CLASSES, size.width, 0, softmaxes=8, lr=LR, device=device) for _ in KINDS]
        self.encoder = encoder.to(device)
        self.step = PeerStep(self.encoder, heads, (codec, frames, tiling), CHUNKS, bf16=True, lr=LR)
        self.visible = media.visible[:codec].to(device)
        self.labels = [media.labels[kind].to(device) for kind in KINDS]
        self.loader = DenseLoader(
            *(media.files[kind] for kind in KINDS),
            side=config.data.size,
            frames=config.data.clip_frames,
            workers=workers,
        )
        self.watch = Stopwatch(device)

    def run(self) -> Sequence[Tensor]:
        with self.watch("data"):
            batch = next(self.loader)
        losses = self.step.run(batch, self.visible, self.labels, self.watch)
        self.watch.end_round()
        assert all(loss.isfinite() for loss in losses), losses
        return losses


def config_of(args: argparse.Namespace, folder: Path) -> TrainConfig:
    shares = {"image": 2.0, "document": 1.0, "video": 2.0}
    sources = [
        SourceConfig(
            kind,
            str(folder / kind),
            str(folder / f"{kind}-labels"),
            share=shares[kind],
            flip=kind == "image",
        )
        for kind in KINDS
    ]
    augment = AugmentConfig(flip=0.5, crop_area=[0.7, 1.0], crop_aspect=[0.8, 1.25])
    return TrainConfig(
        model=ModelConfig(preset=args.preset, attention=args.attention),
        data=DataConfig(sources, augment=augment, workers=args.workers, prefetch=1),
        optim=OptimConfig(lr=LR, warmup=0.0),
        run=RunConfig(
            out=str(folder / "run"),
            steps=1000,
            global_batch=args.clips * 5 // 2,
            micro_batch=args.micro_batch,
            backend="ddp",
        ),
    )


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device = torch.device(args.device)
    counts: dict[Kind, int] = {
        "image": args.clips,
        "document": args.clips // 2,
        "video": args.clips,
    }
    media = step_media.make(folder, counts, CLASSES, BUDGET)
    config = config_of(args, folder)
    ours, peer = Ours(config, device), Published(media, config, device, args.workers)
    copy_weights(peer.encoder, ours.parts.encoder.state_dict())
    try:
        times = interleaved(
            {"ours": ours.run, "published": peer.run}, warm_up=args.warm_up, rounds=args.rounds
        )
    finally:
        ours.parts.loader.close()
        peer.loader.close()
    steps = args.warm_up + args.rounds
    shown = [steps * args.clips * n // 16 for n in VIEW_SIXTEENTHS]
    assert ours.views == [*shown, steps * args.clips * 3 // 2], ours.views
    sides = {
        name: {"step": times[name], **side.watch.read(args.warm_up)}
        for name, side in (("ours", ours), ("published", peer))
    }
    fastest = {n: {p: t["min_ms"] for p, t in side.items()} for n, side in sides.items()}
    over = {p: round(fastest["published"][p] / fastest["ours"][p], 2) for p in ("step", *PARTS)}
    return {"samples": counts, **sides, "over_published": over}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=16, help="of a step, a multiple of 16")
    parser.add_argument("--preset", default="", help="small, on a GPU large")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="that make samples, of each side")
    parser.add_argument("--micro-batch", type=int, default=0, help="our samples per forward pass")
    parser.add_argument("--attention", default="auto", help="ours; sdpa is the peer's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if not KEEP.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    args.preset = args.preset or ("small" if args.device == "cpu" else "large")
    torch.set_num_threads(args.threads)
    size = ModelConfig(preset=args.preset).size
    head_dim = size.width // size.heads
    with tempfile.TemporaryDirectory() as name:
        found = measure(args, Path(name))
    print(
        line(
            "step",
            device=torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
            torch=torch.__version__,
            preset=args.preset,
            attention=choose_backend(args.attention, args.device, torch.bfloat16, head_dim),
            rounds=args.rounds,
            workers=args.workers,
            **found,
        )
    )


if __name__ == "__main__":
    main()
