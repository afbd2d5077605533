"""Twenty steps of a fixed tiny config give the losses in ``losses.json``.

The data are generated without a video encoder's or JPEG library's help (their pixels differ
between versions): patches, positions and labels come from numpy's seeded generator, packed by
hand. So this holds model, head, loss, both optimizers, schedule and clip fixed, and nothing else.

Tolerance 1e-4 relative: between CPUs, thread counts and torch releases the order of float32 sums
changes, 1e-7 per sum (measured: 2e-7 after 20 updates between one thread and two). A change of
method moves losses by far more. After a deliberate one, run this file as a script:

    python -m tests.golden.test_losses
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ovtrain.config.data import DataConfig, SourceConfig
from ovtrain.config.head import HeadConfig
from ovtrain.config.model import ModelConfig
from ovtrain.config.optim import OptimConfig
from ovtrain.config.train import RunConfig, TrainConfig
from ovtrain.data.batch import PackedSample, pack
from ovtrain.data.loader import StepBatch
from ovtrain.distributed.mesh import make_mesh
from ovtrain.distributed.parallelize import undivided
from ovtrain.engine.backend import PlainBackend
from ovtrain.engine.step import SourceHead, TrainStep
from ovtrain.heads.class_sharded import ClassShardedHead
from ovtrain.models.encoder import build_encoder
from ovtrain.optim.sparse_rows import SparseRows
from tests.helpers.training import world

GOLDEN = Path(__file__).with_name("losses.json")
STEPS, SAMPLES, CLASSES = 20, 8, (60, 40)
CONFIG = TrainConfig(
    model=ModelConfig(preset="tiny"),
    data=DataConfig(sources=[SourceConfig("video", "v", weight=1.0), SourceConfig("image", "i")]),
    head=HeadConfig(sample_rate=0.3),
    optim=OptimConfig(lr=1e-3, warmup=0.1, clip=1.0),
    run=RunConfig(steps=STEPS, global_batch=SAMPLES, backend="ddp", precision="fp32"),
)


def step_batch(step: int) -> StepBatch:
    """Four clips of 10 tokens and four pictures of 4, in two micro-steps of two each."""
    rng = np.random.default_rng(step)
    micro = []
    for _ in range(2):
        samples = []
        for source in (0, 0, 1, 1):
            tokens = (10, 4)[source]
            samples.append(
                PackedSample(
                    rng.integers(0, 256, (tokens, 588), dtype=np.uint8),
                    rng.integers(0, 16, (tokens, 3)) * [1 - source, 1, 1],
                    rng.permutation(CLASSES[source])[:3].astype(np.int32),
                    source,
                    0,
                    0,
                )
            )
        micro.append(pack(samples))
    rows = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    return StepBatch(micro, [4, 4], [rows, rows], [])


def train_step() -> TrainStep:
    encoder = build_encoder(CONFIG.model, seed=11)
    heads = []
    for number, (source, classes) in enumerate(zip(CONFIG.data.sources, CLASSES, strict=True)):
        head = ClassShardedHead(source.name, classes, encoder.width, CONFIG.head, world(), seed=12)
        rows = SparseRows(head.rows, head.config, CONFIG.optim, first_row=0, seed=12)
        heads.append(SourceHead(number, source.weight, head, rows, 3))
    backend = PlainBackend(encoder, undivided(encoder), CONFIG.optim, make_mesh(world(), 1))
    return TrainStep(CONFIG, encoder, backend, heads, make_mesh(world(), 1), str)


def losses() -> list[dict[str, float]]:
    step = train_step()
    found = [step.run(step_batch(number), number) for number in range(STEPS)]
    return [{name: float(value) for name, value in row.metrics.items()} for row in found]


def test_losses_are_those_of_the_golden_file():
    golden = json.loads(GOLDEN.read_text())
    found = losses()
    assert len(found) == len(golden) == STEPS
    for step, (expected, row) in enumerate(zip(golden, found, strict=True)):
        assert row.pop("refused") == 0
        assert row == pytest.approx(expected, rel=1e-4), f"step {step}"


def test_two_runs_are_bit_identical():
    assert losses() == losses()


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(losses(), indent=1) + "\n")
