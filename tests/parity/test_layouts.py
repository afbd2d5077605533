"""The whole cross of layouts against the plain single process: 2 and 4 tensor ranks x plain data
parallelism and ZeRO-1, 2, 3 x sequence parallelism, with recomputation and accumulation in turns.
"""

import json
from itertools import product
from typing import Any

import pytest

from tests.helpers.training import metrics
from tests.parity.conftest import Runs, launch, run_of
from tests.parity.test_resume import assert_last_two_steps, trace

STAGES: dict[str, dict[str, Any]] = {
    "ddp": {"backend": "ddp"},
    **{f"zero{stage}": {"zero_stage": stage} for stage in (1, 2, 3)},
}
TURNS: list[dict[str, Any]] = [
    {},
    {"recompute": 1},
    {"micro_batch": 3},
    {"micro_batch": 2, "recompute": 2},
]


def layouts(*tensor_ranks: int) -> dict[str, dict[str, Any]]:
    found = {}
    for n, (ranks, sequence, stage) in enumerate(product(tensor_ranks, (False, True), STAGES)):
        own = {"tensor_parallel": ranks, "sequence_parallel": sequence, **STAGES[stage]}
        name = f"cross-tp{ranks}-{stage}" + "-sequence" * sequence
        found[name] = own | TURNS[(n + n // 4) % 4]
    return found


ON_4, ON_2 = layouts(2, 4), {f"{n}-on-2": run for n, run in layouts(2).items()}
AFTER = {
    1: {"tp1-zero1-after": {"zero_stage": 1}, "tp1-zero3-after": {"zero_stage": 3}},
    2: {"tp2-zero3-on-2-after": {"zero_stage": 3, "tensor_parallel": 2}},
    4: {"tp4-zero2-after": {"zero_stage": 2, "tensor_parallel": 4}},
}
SAVED = "tp2-zero2-4-sequence"


@pytest.fixture(scope="module")
def cross(runs: Runs) -> Runs:
    for processes, named in {2: ON_2, 4: ON_4, 1: {}}.items():
        told = [run_of(runs.folder, name, run) for name, run in named.items()]
        told += [run_of(runs.folder, name, run, SAVED) for name, run in AFTER[processes].items()]
        launch(runs.folder, processes, told)
    return runs


@pytest.mark.full
@pytest.mark.parametrize("name", [*ON_4, *ON_2])
def test_twenty_steps_equal_the_plain_single_process(cross: Runs, name: str):
    reference, found = metrics(cross.out("plain")), metrics(cross.out(name))
    assert [row["step"] for row in found] == list(range(1, 21))
    for expected, row in zip(reference, found, strict=True):
        for column, limit in {"loss": 1e-5, "grad_norm": 1e-5}.items():
            assert row[column] == pytest.approx(expected[column], rel=limit), row["step"]
    worst = json.loads((cross.out(name) / "gradients.json").read_text())
    assert {n: error for n, error in worst.items() if not error < 1e-4} == {}


@pytest.mark.full
@pytest.mark.parametrize("name", [name for named in AFTER.values() for name in named])
def test_a_checkpoint_goes_on_under_another_layout(cross: Runs, name: str):
    assert_last_two_steps(cross.out(name), cross.out(SAVED))
    assert trace(cross.out(name)) == trace(cross.out(SAVED))[-2:]
