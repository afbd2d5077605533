"""The class-sharded head on 1, 2, 3 and 4 processes against the dense loss in float64.

Tolerance: float32 dot products of 32-element unit vectors (error about 1e-7) times a scale of about
10, summed over about 100 logits: measured below 4e-7. Losses are held to 1e-5, gradients to 1e-4 of
their norm, which any wrong factor, row or sample exceeds by far. The bfloat16 case: 0.5 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ovtrain.distributed.context import seed_for
from ovtrain.heads.draw import distinct, drawn_positives
from tests.helpers.training import world
from tests.helpers.world import succeed, torchrun
from tests.parity.head_cases import CLASSES, NAMES, STEP, cases, dense, labels, make_heads, sharded

PROCESSES = (1, 2, 3, 4)


@pytest.fixture(scope="session")
def by_world(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("heads")
    found: dict[int, dict[str, Any]] = {
        1: {name: sharded(case, world()) for name, case in cases().items()}
    }
    for processes in PROCESSES[1:]:
        out = folder / f"{processes}.pt"
        succeed(torchrun(processes, "-m", "tests.parity.head_job", str(out)))
        found[processes] = torch.load(out)
    return found


def active(name: str) -> list[np.ndarray]:
    """(B, l) labels that take part, of each source."""
    found: list[np.ndarray] = []
    for head, table in zip(make_heads(cases()[name], world()), labels(), strict=True):
        own = distinct(table)
        seed = seed_for(head.seed, "positives", STEP)
        found.append(np.where(drawn_positives(own, head.config.positives_per_step, seed), own, -1))
    return found


def error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference, relative to what is wanted."""
    if not wanted.any():
        return float(found.abs().max())
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("name", list(cases()))
def test_shards_add_up_to_the_dense_loss_and_gradients(by_world, name: str, processes: int):
    found = by_world[processes][name]
    wanted = dense(cases()[name], found["drawn"], active(name))
    of_losses, of_gradients = (3e-3, 5e-3) if cases()[name].bf16 else (1e-5, 1e-4)
    for source, loss, expected in zip(NAMES, found["losses"], wanted["losses"], strict=True):
        assert float(loss) == pytest.approx(float(expected), rel=of_losses), source
    for part in ("embeddings", "rows"):
        for source, gradient, expected in zip(NAMES, found[part], wanted[part], strict=True):
            assert error(gradient, expected) < of_gradients, (part, source)
    squares = [float(g.square().sum()) for g in wanted["rows"]]
    assert found["squares"].tolist() == pytest.approx(squares[:3], rel=2 * of_gradients)


@pytest.mark.parametrize("name", list(cases()))
def test_every_world_draws_the_same_rows(by_world, name: str):
    for processes in PROCESSES:
        assert by_world[processes][name]["drawn"] == by_world[1][name]["drawn"]


def test_the_cases_hold_what_they_claim(by_world):
    """Guards the tests above: gradients that are not zero, rates that leave rows out, a source
    without labels, a rank without positives."""
    found = by_world[1]["logistic-0.3-1"]
    assert all(gradient.any() for gradient in found["rows"][:3])
    assert not found["rows"][3].any()
    assert found["losses"][3] == 0
    assert 25 < len(found["drawn"][0]) < CLASSES[0] * 0.7
    assert by_world[1]["logistic-1.0-1"]["drawn"][0] == list(range(CLASSES[0]))
    assert labels()[1].max() < world(1, 4).slice_of(CLASSES[1]).start
