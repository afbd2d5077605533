"""A step of the class-sharded head against the published recipe and a single sampled softmax.

    python benchmarks/head.py [--cases 15625:512 15625:2048 250000:512] [--dtypes bf16 fp32]
                              [--rates 0.1 1] [--labels range local] [--rounds 7] [--device cpu]
    python benchmarks/head.py --largest 2000000 --batch 256      one head, real steps and memory

A step is all that a head does with a gathered batch: draw, logits, loss, gradients of embeddings
and rows, optimizer. ``published`` and ``single`` are in ``peer_heads.py``; the others are
``ovtrain.heads`` with the loss and row storage that their names say (``rowwise``: bfloat16 rows and
first moment, one second moment per row). GEMMs are of the same dtype on every side and all
optimizers are fused.

``range``: labels are uniform over 2 M classes, of which ``rows`` are here (a shard of 2 M / rows
ranks). ``local``: all labels are among the rows here. Rounds are interleaved; ``over`` divides the
fastest rounds. ``memory_mib``: the peak of three steps above what a process holds after importing
torch and one small product, one process for each head. ``launches``: operators that compute or
copy, and our own kernels; ``syncs``: those that wait for a device's answer.

``--keep-memory`` (glibc): the allocator gives nothing back to the system. Steps that make large
arrays anew, as the peers' do, are then several times faster where the system is slow to hand out
pages; ours uses its arrays again either way. Both are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dispatched import Dispatched
from measure import interleaved, line
from peer_heads import PeerHead
from torch import Tensor

from ovtrain.config.head import HeadConfig
from ovtrain.config.optim import OptimConfig
from ovtrain.distributed.context import World
from ovtrain.distributed.mesh import make_mesh
from ovtrain.heads.class_sharded import ClassShardedHead
from ovtrain.heads.multi_source import HeadStep, MultiSource
from ovtrain.optim.sparse_rows import SparseRows

CLASSES, WIDTH, POSITIVES = 2_000_000, 1024, 10
ROWWISE = {"rows": "bf16", "moments": "bf16", "optimizer": "rowwise_adamw"}
OURS: dict[str, dict[str, Any]] = {
    "logistic": {},
    "logistic rowwise": ROWWISE,
    "margin": {"loss": "margin_softmax"},
}
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


class OurHead:
    """One shard's whole step, as ``engine/step.py`` does it for a source alone."""

    def __init__(
        self, count: int, rate: float, bf16: bool, device: torch.device, local: bool, **head: Any
    ) -> None:
        classes = count if local else CLASSES
        self.world = World(0, 0, 1 if local else CLASSES // count, device, None)
        config = HeadConfig(sample_rate=rate, **head)
        self.head = ClassShardedHead("image", classes, WIDTH, config, self.world, 0, bf16=bf16)
        self.optimizer = SparseRows(
            self.head.rows, self.head.config, OptimConfig(), first_row=0, seed=0
        )
        # The world says which rows are here; this process stands for the gathered batch.
        self.sources = MultiSource(make_mesh(World(0, 0, 1, device, None), 1))
        self.number = 0
        self.one = torch.ones((), device=device)

    def step(self, embeddings: Tensor, labels: Tensor, host: np.ndarray) -> Tensor:
        plan = self.head.plan(self.number, [host])
        rows = self.head.take(plan, self.optimizer.pending)
        everyone = torch.arange(len(embeddings), device=embeddings.device)
        step = HeadStep(self.head, 1.0, plan, rows)
        result = self.sources.micro_step(embeddings, [step], 0, [everyone], len(embeddings))
        self.head.gradient_squares(rows)
        self.optimizer.step(rows.index, rows.gradient, 1e-3, self.number, self.one)
        self.number += 1
        return result.gradient


class PeerStep:
    def __init__(self, rows: int, rate: float, bf16: bool, device: torch.device, n: int) -> None:
        self.head = PeerHead(rows, WIDTH, 0, softmaxes=n, rate=rate, bf16=bf16, device=device)

    def step(self, embeddings: Tensor, labels: Tensor, host: np.ndarray) -> Tensor:
        return self.head.step(embeddings, labels)[1]


def make(name: str, rows: int, rate: float, bf16: bool, device: torch.device, local: bool) -> Any:
    if name in OURS:
        return OurHead(rows, rate, bf16, device, local, **OURS[name])
    return PeerStep(rows, rate, bf16, device, {"published": 8, "single": 1}[name])


class Batches:
    """A new batch every call: embeddings (B, D), labels (B, 10) int64 and int32 on the host."""

    def __init__(self, size: int, classes: int, device: torch.device) -> None:
        self.size, self.classes, self.device = size, classes, device
        self.rng = np.random.default_rng(0)
        self.embeddings = torch.randn(size, WIDTH, device=device)

    def __call__(self) -> tuple[Tensor, Tensor, np.ndarray]:
        host = self.rng.integers(0, self.classes, (self.size, POSITIVES))
        labels = torch.from_numpy(host).to(self.device)
        return self.embeddings, labels, host.astype(np.int32)


class CountedKernels:
    """Kernels that are no operators of torch."""

    def __init__(self, kernels: Any, counted: Dispatched) -> None:
        self.kernels, self.counted = kernels, counted

    def __getattr__(self, name: str) -> Callable[..., None]:
        self.counted.launches += 1
        return getattr(self.kernels, name)


def count(head: Any, batch: tuple[Tensor, Tensor, np.ndarray]) -> dict[str, int]:
    """Launches and syncs of one step."""
    counted = Dispatched()
    owners = [head.head, head.optimizer, head.sources] if isinstance(head, OurHead) else []
    kernels = [owner.kernels for owner in owners]
    for owner in owners:
        owner.kernels = CountedKernels(owner.kernels, counted)
    with counted:
        head.step(*batch)
    for owner, own in zip(owners, kernels, strict=True):
        owner.kernels = own
    return {"launches": counted.launches, "syncs": len(counted.waits)}


def measure(args: argparse.Namespace, rows: int, batch: int, dtype: str, labels: str) -> Any:
    device, local = torch.device(args.device), labels == "local"
    batches = Batches(batch, rows if local else CLASSES, device)
    heads: dict[str, Any] = {}
    for rate in args.rates:
        for name in args.heads:
            if rate == 1 and name in ("published", "margin"):
                continue
            key = name if rate == 0.1 else f"{name} r={rate:g}"
            heads[key] = make(name, rows, rate, dtype == "bf16", device, local)
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)

    def one_step(head: Any) -> Callable[[], object]:
        return lambda: (head.step(*batches()), wait())

    times = interleaved(
        {name: one_step(head) for name, head in heads.items()}, warm_up=2, rounds=args.rounds
    )
    counts = {name: count(head, batches()) for name, head in heads.items()}
    found = {name: {**times[name], **counts[name]} for name in heads}
    for peer in ("published", "single"):
        for name, entry in found.items():
            if peer in times and not name.startswith(("published", "single")):
                ratio = times[peer]["min_ms"] / entry["min_ms"]
                entry[f"over_{peer}"] = round(ratio, 2)  # type: ignore[index]
    return found


def memory(name: str, rows: int, batch: int, rate: float, dtype: str, device_name: str) -> float:
    """MiB, in this process; see the module."""
    device = torch.device(device_name)
    _first_product(device)
    before = _resident() if device.type == "cpu" else 0.0
    head = make(name, rows, rate, dtype == "bf16", device, local=False)
    batches = Batches(batch, CLASSES, device)
    for _ in range(3):
        head.step(*batches())
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _resident("VmHWM") - before


def _first_product(device: torch.device) -> Tensor:
    """Loads what torch loads when it first multiplies."""
    x = torch.randn(64, 64, device=device, dtype=torch.bfloat16)
    return x @ x


def _resident(field: str = "VmRSS") -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1024


def memory_apart(args: argparse.Namespace, name: str, rows: int, batch: int) -> int:
    command = [sys.executable, __file__, "--memory-of", name, "--cases", f"{rows}:{batch}"]
    command += ["--device", args.device, "--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(float(done.stdout))


def largest(args: argparse.Namespace) -> dict[str, Any]:
    """A head of ``--largest`` rows, all of them here: seconds of each step, memory."""
    device = torch.device(args.device)
    _first_product(device)
    before = _resident()
    found: dict[str, Any] = {"rows": args.largest, "batch": args.batch, "rate": 0.1}
    head = OurHead(args.largest, 0.1, True, device, local=True, **ROWWISE)
    batches = Batches(args.batch, args.largest, device)
    seconds: list[float] = []
    for _ in range(args.rounds):
        batch = batches()
        start = time.perf_counter()
        head.step(*batch)
        seconds.append(round(time.perf_counter() - start, 3))
    return found | {"seconds": seconds, "memory_mib": round(_resident("VmHWM") - before)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=["15625:512", "15625:2048", "250000:512"])
    parser.add_argument("--dtypes", nargs="*", default=["bf16", "fp32"])
    parser.add_argument("--labels", nargs="*", default=["range", "local"])
    parser.add_argument("--rates", nargs="*", type=float, default=[0.1, 1.0])
    parser.add_argument("--heads", nargs="*", default=["published", "single", *OURS])
    parser.add_argument("--memory", nargs="*", default=["15625:512", "250000:512"])
    parser.add_argument("--largest", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    parser.add_argument("--keep-memory", action="store_true", help="see above")
    args = parser.parse_args()
    if args.keep_memory and not KEEP.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    torch.set_num_threads(args.threads)
    cases = [tuple(map(int, case.split(":"))) for case in args.cases]
    if args.memory_of:
        (rows, batch), *_ = cases
        print(memory(args.memory_of, rows, batch, 0.1, "bf16", args.device))
        return
    entries: dict[str, Any] = {}
    if args.largest:
        entries["largest"] = largest(args)
    else:
        entries["memory_mib"] = {
            case: {
                name: memory_apart(args, name, *map(int, case.split(":"))) for name in args.heads
            }
            for case in args.memory
        }
        print(json.dumps(entries["memory_mib"]), file=sys.stderr, flush=True)
        for rows, batch in cases:
            for dtype in args.dtypes:
                for labels in args.labels:
                    key = f"{rows} rows, batch {batch}, {dtype}, {labels}"
                    entries[key] = measure(args, rows, batch, dtype, labels)
                    print(key, json.dumps(entries[key]), file=sys.stderr, flush=True)
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    print(
        line(
            "head",
            device=device,
            torch=torch.__version__,
            rounds=args.rounds,
            kept=args.keep_memory,
            **entries,
        )
    )


if __name__ == "__main__":
    main()
