"""A run's numbers depend neither on the number of processes, nor on the backend, nor on
accumulation.

What may differ is the order of float32 sums (ranks, micro-steps, ZeRO's flat partitions): about
1e-7 per sum, growing over 20 updates whose losses move by a factor of two. 1e-5 relative is that
with room, and far below any wrong factor (a missing 1 / world size is 1).
"""

import json

import pytest

from tests.helpers.training import metrics
from tests.parity.conftest import (
    FOUR_PROCESSES,
    ONE_PROCESS,
    TENSOR_2,
    TENSOR_4,
    THREE_PROCESSES,
    TWO_PROCESSES,
    Runs,
)
from tests.parity.gradients import GRADIENTS

RELATIVE = 1e-5
OTHERS = [
    name
    for name in (
        "plain-accumulated",
        *ONE_PROCESS,
        *TWO_PROCESSES,
        *THREE_PROCESSES,
        *FOUR_PROCESSES,
        *TENSOR_2,
        *TENSOR_4,
    )
    if not name.startswith("losses")
]
LOSSES = [name for name in TWO_PROCESSES if name.startswith("losses")]
COLUMNS = ("loss", "loss/video", "loss/image", "grad_norm")


@pytest.mark.parametrize("name", OTHERS)
def test_twenty_steps_equal_the_plain_single_process(runs: Runs, name: str):
    reference, found = metrics(runs.out("plain")), metrics(runs.out(name))
    assert [row["step"] for row in found] == list(range(1, 21))
    for expected, row in zip(reference, found, strict=True):
        for column in COLUMNS:
            assert row[column] == pytest.approx(expected[column], rel=RELATIVE), row["step"]


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "plain-accumulated"])
def test_every_gradient_of_every_step_equals_the_plain_single_process(runs: Runs, name: str):
    """20 updates apart, which float32 sums in another order let drift by about 1e-6."""
    worst = json.loads((runs.out(name) / GRADIENTS).read_text())
    assert len(worst) > 40
    assert {n: error for n, error in worst.items() if not error < 1e-4} == {}


@pytest.mark.parametrize("name", LOSSES)
def test_the_exponential_losses_equal_the_plain_single_process(runs: Runs, name: str):
    reference, found = metrics(runs.out("losses-plain")), metrics(runs.out(name))
    assert len(found) == len(reference) == 8
    for expected, row in zip(reference, found, strict=True):
        for column in COLUMNS:
            assert row[column] == pytest.approx(expected[column], rel=RELATIVE), row["step"]


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_samples_were_read(runs: Runs, name: str):
    last, expected = metrics(runs.out(name))[-1], metrics(runs.out("plain"))[-1]
    assert last["views"] == expected["views"]
    assert last["views"]["image"] == 60  # 3 of 7 in each of 20 steps
    assert last["bad_samples"] == 0


def test_losses_fall_or_move(runs: Runs):
    """Guards the tests above against comparing runs in which nothing happens."""
    losses = [row["loss"] for row in metrics(runs.out("plain"))]
    assert max(losses) > 1.2 * min(losses)


@pytest.mark.parametrize("name", ["ddp-2", "deepspeed-2"])
def test_gradients_are_reduced_once_per_step_however_many_micro_steps(runs: Runs, name: str):
    once, accumulated = (
        json.loads((runs.out(n) / "reduced.json").read_text())
        for n in (name, f"{name}-accumulated")
    )
    assert len(once) == 20
    assert min(once) > 400_000  # the encoder's parameters are among it
    assert accumulated == once


def test_collectives_keep_their_gradient_contract(runs: Runs):
    found = runs.collectives
    # Sums of small whole numbers are exact in float32.
    assert found["gather_gradient_error"] == [0.0, 0.0]
    assert found["gathered_sum"] == 6.0
    assert found["padded"] == [0, -1, 1, 1]
    assert (found["sum"], found["max"], found["left_alone"]) == (3.0, 2.0, 1.0)
    assert found["broadcast"] == {"from": 0}


def test_communication_time_counts_how_long_a_rank_waits_for_a_late_one(runs: Runs):
    for name in ("own_ms", "deepspeed_ms", "deepspeed_async_ms"):
        early, late = runs.collectives[name]
        assert early > 80, name  # rank 1 comes 100 ms late
        assert late < early / 2, name
