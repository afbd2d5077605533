"""One step of four heads on any number of processes, and the same in dense float64.

The batch is fixed: samples of four sources, dealt to ranks and micro-steps as the loader deals
them, unevenly. Sources: ``video``; ``image``, whose labels all lie in the first two classes, so
that most ranks have no positive in their shard; ``few``, with fewer classes than ranks; ``empty``,
of whose samples none has a label.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ovtrain.config.head import HeadConfig
from ovtrain.config.step_plan import StepPlan
from ovtrain.distributed.collectives import all_reduce, gather_objects
from ovtrain.distributed.context import World
from ovtrain.distributed.mesh import make_mesh
from ovtrain.heads.class_sharded import ClassShardedHead
from ovtrain.heads.losses import dense_loss
from ovtrain.heads.multi_source import HeadStep, MultiSource

WIDTH, SEED, STEP = 32, 3, 5
NAMES = ("video", "image", "few", "empty")
CLASSES = (101, 23, 3, 11)
SAMPLES = (9, 4, 3, 2)
WEIGHTS = (1.0, 0.5, 2.0, 1.0)
LABELS = 4


@dataclass(frozen=True)
class Case:
    config: HeadConfig
    micro_steps: int = 1
    others: HeadConfig | None = None
    """Of every head but the first, where it differs."""
    bf16: bool = False
    """Products in bfloat16."""


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for loss in ("logistic", "margin_softmax", "mlcd"):
        scale = None if loss == "logistic" else 12.0  # away from saturation
        for rate in (1.0, 0.3):
            config = HeadConfig(loss=loss, sample_rate=rate, init_std=0.5, scale=scale)
            for micro_steps in (1, 2):
                found[f"{loss}-{rate}-{micro_steps}"] = Case(config, micro_steps)
    plain = HeadConfig(sample_rate=0.3, init_std=0.5, reduction="sample", negatives="plain")
    found["plain-per-sample"] = Case(plain)
    filtered = HeadConfig(
        loss="margin_softmax", sample_rate=0.5, init_std=0.5, scale=8.0, interclass_filter=0.1
    )
    found["filtered"] = Case(filtered)
    some = HeadConfig(sample_rate=0.3, init_std=0.5, positives_per_step=2)
    found["two-positives"] = Case(some)
    found["mixed-losses"] = Case(plain, 2, filtered)
    stored = HeadConfig(sample_rate=0.3, init_std=0.5, rows="bf16")
    found["bf16"] = Case(stored, 2, replace(filtered, rows="bf16"), bf16=True)
    return found


def embeddings() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, WIDTH, generator=generator) * 3 for n in SAMPLES]


def labels() -> list[np.ndarray]:
    """(B, 4) per source: repeats in some rows, -1 pads in others, none at all in two."""
    rng = np.random.default_rng(2)
    tables = [rng.integers(0, c, (n, LABELS)) for c, n in zip(CLASSES, SAMPLES, strict=True)]
    tables[1] = rng.integers(0, 2, (SAMPLES[1], LABELS))
    tables[2][:, 2:] = -1
    tables[0][0] = [7, 7, 30, 7]
    tables[0][1:3, 2:] = -1
    tables[0][8] = tables[2][1] = -1
    tables[3][:] = -1
    return [table.astype(np.int32) for table in tables]


def configs(case: Case) -> list[HeadConfig]:
    others = case.others or case.config
    return [case.config, others, others, others]


def make_heads(case: Case, world: World) -> list[ClassShardedHead]:
    return [
        ClassShardedHead(name, classes, WIDTH, config, world, SEED, bf16=case.bf16)
        for name, classes, config in zip(NAMES, CLASSES, configs(case), strict=True)
    ]


def sharded(case: Case, world: World) -> dict[str, Any]:
    """Collective. Losses (4,), gradients of embeddings and of all rows per source, drawn ids."""
    deal = StepPlan(list(SAMPLES), world.size, case.micro_steps)
    z, wanted, heads = embeddings(), labels(), make_heads(case, world)
    steps: list[HeadStep | None] = []
    for s, head in enumerate(heads):
        dealt = [
            np.concatenate([wanted[s][deal.places(s, r, k)] for r in range(world.size)])
            for k in range(case.micro_steps)
        ]
        plan = head.plan(STEP, dealt)
        take = HeadStep(head, WEIGHTS[s], plan, head.take(plan)) if plan.count else None
        steps.append(take)
    losses, sources = torch.zeros(len(heads)), MultiSource(make_mesh(world, 1))
    mine: list[tuple[int, int, Tensor]] = []
    for k in range(case.micro_steps):
        places = [list(deal.places(s, world.rank, k)) for s in range(len(heads))]
        pooled = torch.cat([x[p] for x, p in zip(z, places, strict=True)])
        rows = [torch.from_numpy(deal.gathered_rows(s, k)) for s in range(len(heads))]
        result = sources.micro_step(pooled, steps, k, rows, deal.slots(k))
        losses += result.losses
        owners = [(s, place) for s, held in enumerate(places) for place in held]
        mine += [(s, p, g) for (s, p), g in zip(owners, result.gradient.clone(), strict=True)]
    towards = [torch.zeros_like(x) for x in z]
    for s, place, gradient in (x for part in gather_objects(mine, world.group) for x in part):
        towards[s][place] = gradient
    of_rows = [torch.zeros(c, WIDTH) for c in CLASSES]
    drawn: list[list[int]] = [[] for _ in heads]
    squares = []
    for s, step in enumerate(steps):
        if step is None:
            continue
        squares.append(step.head.gradient_squares(step.rows))
        part = (step.plan.ids, step.rows.gradient[: len(step.plan.ids)])
        for ids, gradient in gather_objects(part, world.group):
            of_rows[s][ids] = gradient.float()
            drawn[s] += ids.tolist()
    return {
        "losses": all_reduce(losses, world.group),
        "embeddings": towards,
        "rows": of_rows,
        "drawn": drawn,
        "squares": all_reduce(torch.stack(squares), world.group),
    }


def dense(case: Case, drawn: list[list[int]], active: list[np.ndarray]) -> dict[str, Any]:
    """The same from ``dense_loss`` and autograd, over the drawn rows; ``active`` as in a Plan."""
    z = [x.double().requires_grad_() for x in embeddings()]
    alone = World(0, 0, 1, torch.device("cpu"), None)
    rows = [head.rows.double().requires_grad_() for head in make_heads(case, alone)]
    losses: list[Tensor] = []
    for s, (config, wanted) in enumerate(zip(configs(case), labels(), strict=True)):
        config = config.resolved(CLASSES[s])
        own = torch.zeros(SAMPLES[s], CLASSES[s], dtype=torch.bool)
        taking_part = torch.zeros_like(own)
        for i, row in enumerate(wanted):
            own[i, row[row >= 0]] = True
            taking_part[i, active[s][i][active[s][i] >= 0]] = True
        weight = torch.full((CLASSES[s],), 1 / config.sample_rate, dtype=torch.float64)
        if config.negatives == "plain":
            weight[:] = 1
        weight[taking_part.any(0)] = 1
        cosines = normalize(z[s]) @ normalize(rows[s]).T
        # A label that sits this step out is neither positive nor negative.
        cosines = cosines.masked_fill(own & ~taking_part, -1e9)
        keep = torch.tensor(drawn[s], dtype=torch.long)
        if not len(keep):
            losses.append(torch.zeros((), dtype=torch.float64))
            continue
        losses.append(dense_loss(config, cosines[:, keep], taking_part[:, keep], weight[keep]))
    total = sum(w * x for w, x in zip(WEIGHTS, losses, strict=True))
    gradients = torch.autograd.grad(total, [*z, *rows], allow_unused=True)
    gradients = [
        torch.zeros_like(x) if g is None else g for g, x in zip(gradients, [*z, *rows], strict=True)
    ]
    return {
        "losses": torch.stack(losses).detach(),
        "embeddings": gradients[:4],
        # HeadStep.weight enters when rows are updated, not in their gradient.
        "rows": [g / w for g, w in zip(gradients[4:], WEIGHTS, strict=True)],
    }
