"""The planner against live processes: bytes and calls of collectives by kind, and bytes of what is
held, equal as integers. What is measured is counted below the collectives
(``ovtrain.distributed.traffic``) and summed over real tensors; nothing of the planner takes part in
it.

The encoder's MLP is 1,801 wide, which no number of ranks divides: every padding shows. Its matrices
there are too large for ZeRO-3 to keep whole, the others are not.
"""

from dataclasses import replace
from typing import Any

import pytest

from launch.plan import make_plan
from launch.plan.deal import deal
from launch.plan.step import table_of
from launch.plan.traffic import stage_of, step_traffic
from ovtrain.config.data import mixture_counts
from ovtrain.config.layout import data_ranks
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.costs import zero
from ovtrain.costs.buckets import Limits
from ovtrain.costs.collectives import Collectives
from tests.parity.conftest import Runs
from tests.parity.traffic_cases import CASES, Case


def config_of(runs: Runs, name: str) -> TrainConfig:
    return load(TrainConfig, str(runs.folder / f"traffic-{name}.yaml"))


def measured(runs: Runs, name: str) -> list[dict[str, Any]]:
    """Of each rank."""
    found = runs.traffic[f"traffic-{name}"]
    assert len(found) == CASES[name].processes
    return found


def expected(
    config: TrainConfig, case: Case, held: list[tuple[int, int]] | None = None
) -> Collectives:
    """Of a step of the run, whose micro-steps ``held`` these tokens and samples."""
    counts = mixture_counts(config.data.sources, config.run.global_batch)
    dealt = deal(tuple(counts), data_ranks(config, case.processes), config.run.micro_batch)
    sources = make_plan(config, case.processes).sources
    return step_traffic(config, sources, dealt, case.processes, case.limits, held).total


@pytest.mark.parametrize("name", CASES)
def test_bytes_and_calls_of_collectives_are_those_counted(runs: Runs, name: str):
    config, case = config_of(runs, name), CASES[name]
    for rank in measured(runs, name):
        for step in rank["steps"][1:]:
            planned = expected(config, case, [(n, samples) for n, samples in step["held"]])
            for what, numbers in (("bytes", planned.bytes), ("calls", planned.calls)):
                counted = dict(step[what])
                if config.run.zero_stage == 3:  # compares what it recorded in its first micro-steps
                    counted.pop("broadcast", None)
                assert counted == numbers, what


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_the_encoder_and_its_optimizer_are_those_held(runs: Runs, name: str):
    config, case = config_of(runs, name), CASES[name]
    ranks = data_ranks(config, case.processes)
    given = (table_of(config), ranks, stage_of(config), config.run.precision)
    assert make_plan(config, case.processes).rank.state == zero.encoder_state(*given)
    state = zero.encoder_state(*given, case.limits)
    planned = {"weights": state.weights, "master": state.master, "moments": state.moments}
    for rank in measured(runs, name):
        assert {kind: rank["held"][kind] for kind in planned} == planned


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_heads_are_those_that_the_fullest_rank_holds(runs: Runs, name: str):
    plan = make_plan(config_of(runs, name), CASES[name].processes)
    held = [rank["held"] for rank in measured(runs, name)]
    for share in plan.rank.heads:
        assert max(h["rows"][share.source] for h in held) == share.rows_bytes
        assert max(h["row_state"][share.source] for h in held) == share.optimizer_bytes
        # Uneven shards: over all ranks every row is there once.
        classes = {"video": 40, "image": 23}[share.source]
        assert sum(h["rows"][share.source] for h in held) * share.rows.most == (
            share.rows_bytes * classes
        )


def test_tokens_and_samples_do_not_always_divide(runs: Runs):
    """Guards the cases of tensor ranks: padding travels, too."""
    steps = [s for n in ("tp2-zero2-4", "tp4-zero1-4") for s in measured(runs, n)[0]["steps"]]
    held = [micro for step in steps for micro in step["held"]]
    assert any(tokens % 2 for tokens, _ in held)
    assert any(samples % 2 for _, samples in held)


def test_a_look_ahead_that_holds_less_gathers_more(runs: Runs):
    """Guards the case above: its limits do change what is gathered."""
    config, case = config_of(runs, "zero3-2-once"), CASES["zero3-2-once"]
    roomy = expected(config, replace(case, limits=Limits())).bytes
    counted = measured(runs, "zero3-2-once")[0]["steps"][-1]["bytes"]
    assert counted["all_gather"] > 1.2 * roomy["all_gather"]
    accumulated = replace(config, run=replace(config.run, micro_batch=2))
    twice = expected(accumulated, replace(case, limits=Limits())).bytes
    assert twice["reduce_scatter"] > 1.9 * roomy["reduce_scatter"]


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("ddp-2", "all_reduce", {"plain": 1}),
        ("zero1-2", "all_reduce", {"bucket": 1}),
        ("zero2-4", "all_reduce", {"bucket": 2}),
        ("zero3-4", "reduce_scatter", {"bucket": 2}),
        ("zero3-4", "all_reduce", {"sub_group": 1}),
    ],
)
def test_smaller_buckets_and_pieces_take_more_calls(
    runs: Runs, name: str, kind: str, more: dict[str, int]
):
    """Guards the counts above: limits do cut what would be one call."""
    config, case = config_of(runs, name), CASES[name]
    roomy = replace(case.limits, **dict.fromkeys(more, 10**9))
    before = expected(config, replace(case, limits=roomy)).calls[kind]
    after = measured(runs, name)[0]["steps"][-1]["calls"][kind]
    assert after - before >= sum(more.values())
