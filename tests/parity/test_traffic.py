"""The planner against live processes: bytes of collectives by kind, and of what is held, equal as
integers. What is measured is counted below the collectives (``ovtrain.distributed.traffic``) and
summed over real tensors; nothing of the planner takes part in it.

The encoder's MLP is 1,801 wide, which no number of ranks divides: every padding shows. Its matrices
there are too large for ZeRO-3 to keep whole, the others are not.
"""

from dataclasses import replace
from typing import Any

import pytest

from launch.plan import make_plan
from launch.plan.deal import deal
from launch.plan.traffic import step_traffic
from ovtrain.config.data import mixture_counts
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from tests.parity.conftest import Runs
from tests.parity.traffic_cases import CASES


def config_of(runs: Runs, name: str) -> TrainConfig:
    return load(TrainConfig, str(runs.folder / f"traffic-{name}.yaml"))


def measured(runs: Runs, name: str) -> list[dict[str, Any]]:
    """Of each rank."""
    found = runs.traffic[f"traffic-{name}"]
    assert len(found) == CASES[name].processes
    return found


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_collectives_are_those_counted(runs: Runs, name: str):
    case, config = CASES[name], config_of(runs, name)
    counts = mixture_counts(config.data.sources, config.run.global_batch)
    dealt = deal(tuple(counts), case.processes, config.run.micro_batch)
    limits = dict(zip(("prefetch", "live"), case.limits or (), strict=False))
    sources = make_plan(config, case.processes).sources
    expected = step_traffic(config, sources, dealt, case.processes, **limits).total
    for rank in measured(runs, name):
        # ZeRO-3 compares what its first micro-steps recorded among ranks: small broadcasts.
        steps = [{k: n for k, n in step.items() if k != "broadcast"} for step in rank["steps"]]
        assert steps[1:] == [expected] * 2


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_the_encoder_and_its_optimizer_are_those_held(runs: Runs, name: str):
    state = make_plan(config_of(runs, name), CASES[name].processes).rank.state
    expected = {"weights": state.weights, "master": state.master, "moments": state.moments}
    for rank in measured(runs, name):
        assert {kind: rank["held"][kind] for kind in expected} == expected


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


def test_a_look_ahead_that_holds_less_gathers_more(runs: Runs):
    """Guards the case above: its limits do change what is gathered."""
    config = config_of(runs, "zero3-2-once")
    counts = tuple(mixture_counts(config.data.sources, config.run.global_batch))
    sources = make_plan(config, 2).sources
    roomy = step_traffic(config, sources, deal(counts, 2, 0), 2).total
    counted = measured(runs, "zero3-2-once")[0]["steps"][-1]
    assert counted["all_gather"] > 1.2 * roomy["all_gather"]
    accumulated = replace(config, run=replace(config.run, micro_batch=2))
    twice = step_traffic(accumulated, sources, deal(counts, 2, 2), 2).total
    assert twice["reduce_scatter"] > 1.9 * roomy["reduce_scatter"]
