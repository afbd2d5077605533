"""Layouts of a job: which are looked at and recommended, what a run that does not fit is told."""

from dataclasses import replace
from typing import Any

import pytest

from launch.plan.cluster import Request, cluster_of
from launch.plan.estimate import estimate
from launch.plan.job import JobPlan, memory_problem, plan_job
from launch.plan.layouts import Layout, micro_batches, tensor_sizes
from launch.plan.step import make_plan
from launch.plan.text import job_lines
from launch.preflight import preflight
from ovtrain.config.load import find_config, load
from ovtrain.config.train import TrainConfig

STAGE_ONE, STAGE_TWO = "vitl14-stage1-224px", "vitl14-stage2-64f-2048tok"


def config_of(name: str, *overrides: str) -> TrainConfig:
    return load(TrainConfig, find_config(f"pretrain/{name}"), overrides)


def planned(name: str, gpu: str = "h200", *overrides: str, **asked: Any) -> JobPlan:
    settings: dict[str, Any] = {"nodes": 16, "per_node": 8} | asked
    return plan_job(config_of(name, *overrides), Request(gpu=gpu, **settings))


def test_the_recommended_layout_fits_and_is_the_fastest():
    job = planned(STAGE_TWO)
    best = job.recommended
    assert best is not None
    assert best.fits
    rivals = [c for c in job.layouts if c.fits]
    fastest = min(c.estimate.time.total for c in rivals)
    assert best.estimate.time.total == pytest.approx(fastest, rel=1e-4)
    assert {(c.layout.stage, c.layout.tensor_ranks) for c in job.layouts} == {
        (stage, size) for stage in (0, 1, 2, 3) for size in (1, 2, 4, 8)
    }
    # As a user writes it, it is the plan of that layout.
    again = planned(STAGE_TWO, "h200", *best.layout.keys())
    assert again.estimate == best.estimate


@pytest.mark.parametrize(
    ("name", "gpu", "devices"),
    [(STAGE_ONE, "a100", 1), (STAGE_TWO, "h200", 8), ("debug-stage1", "cpu", 2)],
)
def test_no_layout_is_faster_than_the_recommended_one(name: str, gpu: str, devices: int):
    """One GPU takes the whole batch of 16,384: 128 micro-steps and more."""
    job = planned(name, gpu, nodes=1, per_node=devices)
    best = job.recommended
    assert best is not None
    share = best.estimate.dealt.whole
    sizes = [2**n for n in range(1, 15) if 2**n >= len(job.plan.sources)]
    for stage in range(4):
        for micro_batch in (0, *sizes):
            for recompute in (0, 1, 2):
                layout = Layout(stage, 1, False, micro_batch, recompute)
                made = estimate(layout.of(job.config), job.cluster, job.plan.sources)
                assert made.dealt.whole == share
                if made.fits(job.cluster):
                    assert best.estimate.time.total < made.time.total * 1.0001


def test_of_equally_fast_layouts_nothing_is_recomputed_for_nothing():
    for devices in (1, 2):
        best = planned("debug-stage1", "cpu", nodes=1, per_node=devices).recommended
        assert best is not None
        assert (best.layout.micro_batch, best.layout.recompute) == (0, 0)


def test_the_configs_own_micro_batch_and_recomputation_are_looked_at():
    """24 is no half of 20,011 samples on one GPU."""
    huge = ("model.preset=huge", "model.recompute=3", "run.global_batch=20011")
    job = planned(STAGE_TWO, "h200", *huge, nodes=1, per_node=1)
    config = job.config
    sizes = micro_batches(job.plan.sources, 1, config.run.micro_batch)
    assert config.run.micro_batch == 24
    assert (sizes[0], sizes[1], sizes[-1]) == (0, 3, 10_006)
    assert 24 in sizes
    assert 24 not in micro_batches(job.plan.sources, 1, 0)
    # If a config fits, so does a recommended layout.
    assert job.estimate.fits(job.cluster)
    best = job.recommended
    assert best is not None
    assert best.estimate.time.total <= job.estimate.time.total
    assert memory_problem(config, 1, 1, "h200") is None
    text = memory_problem(replace(config, run=replace(config.run, micro_batch=0)), 1, 1, "h200")
    assert text is not None
    assert "; use run." in text


def test_tensor_parallelism_is_recommended_where_nothing_else_fits():
    """So little memory that one rank cannot hold a sample of the encoder in any other way."""
    job = planned(STAGE_ONE, "h200", "model.preset=huge", memory_gb=4.5)
    assert not any(c.fits for c in job.layouts if c.layout.tensor_ranks == 1)
    best = job.recommended
    assert best is not None
    assert best.layout.tensor_ranks > 1
    assert job_lines(job)[-1].startswith(f"recommended  {' '.join(best.layout.keys())} (")
    # As a user writes it, it is the plan of that layout; and it takes the other one back.
    keys = best.layout.keys()
    again = planned(STAGE_ONE, "h200", "model.preset=huge", *keys, memory_gb=4.5)
    assert again.estimate == best.estimate
    wide = planned(STAGE_ONE, "h200", "model.preset=huge", *keys)
    assert wide.recommended is not None
    assert "run.tensor_parallel=1" in " ".join(wide.recommended.layout.keys())


def test_sequence_parallelism_is_named_in_both_ways():
    config = config_of(STAGE_ONE, "run.tensor_parallel=2", "run.sequence_parallel=false")
    for sequence in (True, False):
        layout = Layout(1, 2, sequence, 0, 0)
        assert f"run.sequence_parallel={str(sequence).lower()}" in " ".join(layout.keys())
        assert layout.of(config).run.sequence_parallel is sequence
    assert "sequence" not in " ".join(Layout(1, 1, False, 0, 0).keys())


def test_every_row_is_a_config_that_may_run():
    """Keys of the config that a stage does not take are taken back."""
    asked = ("run.forward_ahead=true", "run.overlap_comm=true", "run.micro_batch=8")
    job = planned(STAGE_ONE, "h200", *asked)
    config = config_of(STAGE_ONE, *asked)
    assert {row.layout.stage for row in job.layouts} == {0, 1, 2, 3}
    for row in job.layouts:
        assert row.layout.of(config).run.problems() == []
        again = config_of(STAGE_ONE, *asked, *row.layout.keys())
        assert again.run == row.layout.of(config).run


def test_a_forward_pass_ahead_keeps_the_activations_of_two():
    keys = ("run.micro_batch=8", "run.backend=ddp")
    one = planned(STAGE_ONE, "h200", *keys).estimate.memory
    two = planned(STAGE_ONE, "h200", *keys, "run.forward_ahead=true").estimate.memory
    assert two["activations"] == 2 * one["activations"]


def test_less_memory_takes_smaller_micro_batches_then_recomputes():
    wide, narrow = (planned(STAGE_TWO, memory_gb=m).recommended for m in (141, 12))
    assert wide is not None
    assert narrow is not None
    assert narrow.layout.micro_batch < wide.layout.micro_batch
    assert narrow.estimate.time.total > wide.estimate.time.total
    assert narrow.estimate.bytes <= 12e9


def sizes_of(config: TrainConfig, nodes: int, per_node: int) -> list[int]:
    cluster = cluster_of(Request(nodes, per_node, "h200"))
    return tensor_sizes(config, cluster, make_plan(config, cluster.world).sources)


def test_tensor_parallel_sizes_divide_the_heads_and_the_node():
    config = config_of(STAGE_ONE)  # 16 heads of attention
    sizes = {n: sizes_of(config, 2, n) for n in (1, 4, 6, 8)}
    assert sizes == {1: [1], 4: [1, 2, 4], 6: [1, 2], 8: [1, 2, 4, 8]}
    odd = replace(config, model=replace(config.model, width=960, heads=15))
    assert sizes_of(odd, 2, 8) == [1]
    huge = replace(config, model=replace(config.model, preset="huge"))  # 20 heads
    assert sizes_of(huge, 1, 8) == [1, 2, 4]
    assert sizes_of(huge, 1, 5) == [1, 5]


def test_a_layout_leaves_every_data_rank_a_sample_of_each_source():
    """Eight samples on sixteen ranks."""
    config = config_of(STAGE_ONE, "run.global_batch=8")
    assert sizes_of(config, 2, 8) == [2, 4, 8]
    assert sizes_of(replace(config, run=replace(config.run, global_batch=1)), 1, 8) == [8]


def test_fewer_classes_than_ranks_leave_no_layout():
    config = config_of(STAGE_ONE)
    (source,) = config.data.sources
    few = replace(config.data, sources=[replace(source, classes=15)])
    assert sizes_of(replace(config, data=few), 2, 8) == []
    assert sizes_of(replace(config, data=few), 1, 8) == [1, 2, 4, 8]


def test_a_rank_beyond_its_devices_memory_is_told_what_would_fit():
    config = config_of(STAGE_TWO, "run.micro_batch=0")
    text = memory_problem(config, 128, 8, "a800")
    assert text is not None
    assert "activations" in text
    assert "a800 has 80 GB; use run.backend=deepspeed run.zero_stage=" in text
    fix = text.partition("; use ")[2].split()
    assert memory_problem(config_of(STAGE_TWO, *fix), 128, 8, "a800") is None
    assert memory_problem(config_of(STAGE_TWO), 128, 8, "a800") is None
    assert preflight(config, 128, "a800").config == [text]
    assert preflight(config, 128).config == []


def test_a_job_that_fits_no_layout_says_so():
    sizes = ("model.width=8192", "model.heads=64", "model.mlp=32768")
    config = config_of(STAGE_ONE, *sizes)
    text = memory_problem(config, 8, 8, "l4")
    assert text is not None
    assert text.endswith("no layout fits: use more GPUs")
