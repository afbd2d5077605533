"""What the head's choices do to a small encoder: losses, scale, bias, reduction, negatives, rate.

    python benchmarks/head_study.py [--out benchmarks/results/head-study.jsonl] [--seeds 3]
    python benchmarks/head_study.py --table

One run trains a small network with one head of ``ovtrain.heads`` for ``STEPS`` steps and writes a
line. Runs whose line is there are left out: a study that was interrupted goes on.

Data, equal for all runs of a seed: 40 classes of 25 kinds each are points on a sphere of 24
dimensions; a sample is its kind's point and noise, seen through a fixed random network with 128
nuisance inputs. The teacher sees the sphere: 10,000 of its training samples are the centers, a
sample's labels the nearest of them, 1 to 10 by a draw. So most of a batch's negatives are drawn in
earnest at rate 0.1.
Measured on samples that no run trained on: share of other centers that a positive outranks
(percentile), AUC of positives against negatives, accuracy of a linear probe for the 40 classes with
5 labels each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ovtrain.config.head import HeadConfig
from ovtrain.config.optim import OptimConfig
from ovtrain.distributed.context import World
from ovtrain.distributed.mesh import make_mesh
from ovtrain.eval.linear_probe import linear_probe
from ovtrain.eval.ranking import rank_quality
from ovtrain.heads.class_sharded import ClassShardedHead
from ovtrain.heads.multi_source import HeadStep, MultiSource
from ovtrain.optim.schedule import learning_rate
from ovtrain.optim.sparse_rows import SparseRows

CLASSES, KINDS, LATENT, NUISANCE, SEEN = 40, 25, 24, 128, 256
CENTERS, TRAIN, HELD, LABELS, WIDTH = 10_000, 20_000, 1_000, 10, 96
STEPS, BATCH = 600, 192
OPTIM = OptimConfig(lr=2e-3, weight_decay=0.05, beta2=0.95, warmup=0.1)
ALONE = World(0, 0, 1, torch.device("cpu"), None)


@dataclass(frozen=True)
class Arm:
    """``apart``: each positive has a draw and a softmax of its own, in which the others may be
    negatives, as in the released head."""

    config: HeadConfig
    apart: bool = False


def arms() -> dict[str, Arm]:
    base = HeadConfig()
    margin, mlcd = HeadConfig(loss="margin_softmax"), HeadConfig(loss="mlcd")

    def logistic(pushes: float, **fields: Any) -> Arm:
        """``pushes``: what all negatives weigh at the start, in positives."""
        return Arm(replace(base, bias=math.log(pushes / CENTERS), **fields))

    return {
        "logistic": Arm(base),
        **{f"logistic scale {s}": Arm(replace(base, scale=float(s))) for s in (5, 20, 40)},
        "logistic bias 0": Arm(replace(base, bias=0.0)),
        **{f"logistic bias log({b} / C)": logistic(b) for b in (10, 0.1, 0.01)},
        **{f"logistic scale {s}, log(0.1 / C)": logistic(0.1, scale=float(s)) for s in (5, 20)},
        "logistic reduction sample": Arm(replace(base, reduction="sample")),
        "logistic plain negatives": Arm(replace(base, negatives="plain")),
        "logistic, negatives per positive": Arm(base, apart=True),
        "logistic r=1": Arm(replace(base, sample_rate=1.0)),
        "logistic r=0.02": Arm(replace(base, sample_rate=0.02)),
        "logistic r=0.02 plain": Arm(replace(base, sample_rate=0.02, negatives="plain")),
        "logistic r=0.02, log(10 / C)": logistic(10, sample_rate=0.02),
        "margin": Arm(margin),
        "margin scale 16": Arm(replace(margin, scale=16.0)),
        "margin plain negatives": Arm(replace(margin, negatives="plain")),
        "margin r=1": Arm(replace(margin, sample_rate=1.0)),
        "margin, negatives per positive": Arm(margin, apart=True),
        "mlcd": Arm(mlcd),
        "mlcd scale 16": Arm(replace(mlcd, scale=16.0)),
        "mlcd r=1": Arm(replace(mlcd, sample_rate=1.0)),
        "logistic rowwise bf16": Arm(
            replace(base, rows="bf16", moments="bf16", optimizer="rowwise_adamw")
        ),
        "logistic adagrad": Arm(replace(base, optimizer="rowwise_adagrad")),
    }


@dataclass(frozen=True)
class Data:
    """seen (S, 256), labels (S, 10) with -1 where there is none, truth (S,) of 40 classes; the last
    HELD samples are held out."""

    seen: Tensor
    labels: Tensor
    truth: Tensor

    @classmethod
    @cache
    def make(cls, seed: int) -> Data:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        count = TRAIN + HELD
        classes = normalize(normal(CLASSES, 1, LATENT), dim=-1)
        kinds = normalize(classes + 0.7 * normal(CLASSES, KINDS, LATENT) / LATENT**0.5, dim=-1)
        truth = torch.randint(CLASSES, (count,), generator=generator)
        kind = torch.randint(KINDS, (count,), generator=generator)
        point = kinds[truth, kind] + 0.5 * normal(count, LATENT) / LATENT**0.5
        point = normalize(point, dim=-1)
        inputs = torch.cat([point * LATENT**0.5, normal(count, NUISANCE)], 1)
        wide = LATENT + NUISANCE
        hidden = torch.sin(inputs @ (normal(wide, 512) / wide**0.5) + normal(512))
        seen = hidden @ normal(512, SEEN) / 512**0.5
        centers = point[:CENTERS]
        near = torch.cat([(part @ centers.T).topk(LABELS).indices for part in point.split(2000)])
        owned = torch.randint(1, LABELS + 1, (count, 1), generator=generator)
        return cls(seen, near.masked_fill(torch.arange(LABELS) >= owned, -1), truth)


def run(arm: Arm, seed: int) -> dict[str, float]:
    data = Data.make(seed)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(SEEN, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU())
    net.append(nn.Linear(512, WIDTH))
    optimizer = torch.optim.AdamW(net.parameters(), lr=OPTIM.lr, weight_decay=OPTIM.weight_decay)
    head = ClassShardedHead("study", CENTERS, WIDTH, arm.config, ALONE, seed)
    rows = SparseRows(head.rows, head.config, OPTIM, first_row=0, seed=seed)
    sources, order, one = (
        MultiSource(make_mesh(ALONE, 1)),
        np.random.default_rng(seed),
        torch.ones(()),
    )
    for step in range(STEPS):
        lr = learning_rate(OPTIM, step, STEPS)
        picked = torch.from_numpy(order.choice(TRAIN, BATCH, replace=False))
        z = net(data.seen[picked])
        labels = data.labels[picked].numpy().astype(np.int32)
        parts = [(step, labels)]
        if arm.apart:
            parts = [(step * LABELS + j, labels[:, j : j + 1]) for j in range(LABELS)]
        towards, whole = torch.zeros_like(z), torch.zeros(CENTERS, WIDTH)
        touched = torch.zeros(CENTERS, dtype=torch.bool)
        for number, own in parts:
            plan = head.plan(number, [own])
            taken = HeadStep(head, 1.0, plan, head.take(plan, rows.pending))
            places = [torch.arange(BATCH)]
            towards += sources.micro_step(z.detach(), [taken], 0, places, BATCH).gradient
            head.gradient_squares(taken.rows)
            index = taken.rows.index
            whole[index] += taken.rows.gradient[: len(index)].float() / len(parts)
            touched[index] = True
        index = touched.nonzero().flatten()
        rows.step(index, whole[index], lr, step, one)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        z.backward(towards / len(parts))
        optimizer.step()
    return evaluate(net, head, data)


@torch.no_grad()
def evaluate(net: nn.Module, head: ClassShardedHead, data: Data) -> dict[str, float]:
    embedded = normalize(net(data.seen))
    held, few = embedded[TRAIN:], _few(data.truth[:TRAIN])
    labels = [own[own >= 0] for own in data.labels[TRAIN:]]
    ranks = rank_quality(held @ normalize(head.rows.float()).T, labels)
    with torch.enable_grad():
        found = linear_probe(embedded[few], data.truth[few], held, CLASSES)
    accuracy = (found == data.truth[TRAIN:]).float().mean().item()
    return {"percentile": ranks[0], "auc": ranks[1], "probe": accuracy}


def _few(truth: Tensor) -> Tensor:
    """Five samples of each class."""
    return torch.cat([(truth == c).nonzero().flatten()[:5] for c in range(CLASSES)])


def table(path: Path) -> str:
    """Mean and standard deviation over seeds, per arm."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    now = {name: fingerprint(arm) for name, arm in arms().items()}
    for row in read(path):
        if row["config"] != now.get(row["arm"]):
            continue
        for name in ("percentile", "auc", "probe"):
            values[row["arm"]][name].append(row[name])
    lines = ["| arm | percentile | AUC | probe |", "|---|---|---|---|"]
    for arm, found in values.items():
        shown = [
            f"{np.mean(v):.4f} ± {np.std(v, ddof=1) if len(v) > 1 else math.nan:.4f}"
            for v in found.values()
        ]
        lines.append(f"| {arm} | {' | '.join(shown)} |")
    return "\n".join(lines)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def fingerprint(arm: Arm) -> str:
    """Of all that a run depends on beside its seed: an older study's lines do not count."""
    study = (CLASSES, KINDS, LATENT, NUISANCE, SEEN, CENTERS, TRAIN, HELD, LABELS, WIDTH)
    head = asdict(arm.config.resolved(CENTERS))
    whole = (head, arm.apart, asdict(OPTIM), study, STEPS, BATCH)
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/head-study.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", help="only these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.table:
        print(table(args.out))
        return
    done = {(row["arm"], row["seed"], row["config"]) for row in read(args.out)}
    for seed in range(args.seeds):
        for name, arm in arms().items():
            config = fingerprint(arm)
            if (name, seed, config) in done or (args.arms and name not in args.arms):
                continue
            start = time.perf_counter()
            found = run(arm, seed)
            seconds = round(time.perf_counter() - start, 1)
            row = {"arm": name, "seed": seed, "config": config, **found, "seconds": seconds}
            with open(args.out, "a") as handle:
                handle.write(json.dumps(row) + "\n")
            print(json.dumps(row), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
