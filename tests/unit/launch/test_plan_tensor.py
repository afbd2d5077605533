"""Plans with tensor parallelism against arithmetic written out here, none of it the planner's."""

from dataclasses import replace
from typing import Any

import pytest

from launch import cli
from launch.plan.cluster import Request
from launch.plan.deal import deal
from launch.plan.job import JobPlan, memory_problem, plan_job
from launch.plan.step import make_plan, plan_lines
from launch.plan.text import job_lines, job_object
from launch.preflight import batch_problems, preflight, rank_problems
from ovtrain.config.load import find_config, load
from ovtrain.config.train import TrainConfig
from ovtrain.costs.collectives import Collectives

STAGE_ONE = "vitl14-stage1-224px"
DEPTH, WIDTH, MLP = 24, 1024, 4096
MAPS = 12 * WIDTH**2  # four square ones and an MLP four times as wide
TOKENS, RANK_SAMPLES = 256, 512  # of 16,384 on 32 data ranks of 4


def config_of(*overrides: str) -> TrainConfig:
    return load(TrainConfig, find_config(f"pretrain/{STAGE_ONE}"), overrides)


def planned(*overrides: str, tensor: int = 4, **asked: Any) -> JobPlan:
    settings: dict[str, Any] = {"nodes": 16, "per_node": 8, "gpu": "h200"} | asked
    keys = (f"run.tensor_parallel={tensor}", *overrides)
    return plan_job(config_of(*keys), Request(**settings))


def held(tensor: int) -> int:
    """Of ViT-L's parameters on one of so many tensor ranks. Replicated: patches, per block and for
    the pooling two norms or a norm and the probe with the biases of two second maps, two norms."""
    cut = (DEPTH + 1) * (MAPS + 3 * WIDTH + MLP)
    replicated = 588 * WIDTH + DEPTH * 6 * WIDTH + 4 * WIDTH + 4 * WIDTH
    return cut // tensor + replicated


def test_parameters_of_a_tensor_rank_and_what_zero_divides_of_them():
    assert held(1) == 315_509_760
    job = planned()
    assert job.plan.parameters == held(1)
    memory = job.estimate.memory
    padding = 2 * 2 * 32  # two groups, each filled up to a multiple of 64
    assert 0 <= memory["weights"] - 2 * held(4) < 2 * padding
    assert memory["gradients"] == 2 * held(4)
    part = memory["weights"] // 2 // 32
    assert memory["master weights and moments"] == 12 * part + 8
    assert job.plan.rank.state.weights == memory["weights"]


def test_class_rows_are_divided_over_all_ranks_and_samples_over_data_ranks():
    job, alone = planned(), planned(tensor=1)
    for kind in ("head rows", "head moments", "drawn centers"):
        assert job.estimate.memory[kind] == alone.estimate.memory[kind]
    assert job.plan.rank.samples.most == RANK_SAMPLES == 4 * alone.plan.rank.samples.most
    assert job.plan.rank.heads == alone.plan.rank.heads
    assert job.save == alone.save


@pytest.mark.parametrize(("sequence", "inputs"), [(False, WIDTH), (True, WIDTH // 4)])
def test_activations_of_a_tensor_rank(sequence: bool, inputs: int):
    job = planned(f"run.sequence_parallel={sequence}")
    tokens = TOKENS * RANK_SAMPLES
    block = 2 * inputs + 2 * WIDTH + (6 * WIDTH + 2 * MLP) // 4
    around = 588 + WIDTH + inputs + WIDTH + 2 * WIDTH // 4
    assert job.estimate.memory["activations"] == 2 * tokens * (DEPTH * block + around)


def test_tensor_groups_exchange_tokens_norms_and_the_gradients_of_embeddings():
    traffic = planned().estimate.traffic
    of_tokens, of_samples = 2 * TOKENS * RANK_SAMPLES * WIDTH, 2 * RANK_SAMPLES * WIDTH
    gathers, scatters = 4 * DEPTH + 2, 4 * DEPTH + 1
    norms = 1 + 2 * DEPTH + 1
    assert traffic.encoder["tensor"] == Collectives(
        {
            "all_gather": gathers * of_tokens + 4 * of_samples,
            "reduce_scatter": scatters * of_tokens + 3 * of_samples,
            # float32 would be twice that: weights are bf16 under ZeRO. The probe; two squares; a
            # flag per sample.
            "all_reduce": norms * 2 * 2 * WIDTH + 2 * WIDTH + 2 * WIDTH + 2 * 4 + 4 * RANK_SAMPLES,
        },
        {
            "all_gather": gathers + 4,
            "reduce_scatter": scatters + 3,
            "all_reduce": norms + 1 + 1 + 2 + 1,
        },
    )
    assert traffic.heads["tensor"] == Collectives(
        {"all_reduce": 4 * RANK_SAMPLES * WIDTH}, {"all_reduce": 1}
    )


def test_data_groups_exchange_a_part_of_the_encoder_and_whole_embeddings():
    traffic = planned().estimate.traffic
    sent = traffic.encoder["data"]
    assert sent.bytes["all_reduce"] == 2 * held(4) + 2 * 4
    assert sent.calls == {"all_reduce": 1 + 2, "all_gather": 2}
    heads = traffic.heads["data"]
    assert heads.bytes["reduce_scatter"] == 4 * 16_384 * WIDTH  # as on 128 data ranks
    assert heads.calls == {"all_gather": 2, "reduce_scatter": 1}
    assert traffic.heads["world"] == Collectives({"all_reduce": 4 * 3}, {"all_reduce": 1})


def test_the_plain_backend_adds_squares_up_in_the_tensor_group_and_one_data_rank_reduces_nothing():
    keys = ("run.backend=ddp", "run.sequence_parallel=false", "run.global_batch=4")
    traffic = planned(*keys, nodes=1, per_node=4).estimate.traffic
    assert "data" not in traffic.encoder
    assert "data" not in traffic.heads
    calls = 4 * DEPTH + 3 + 1 + 1  # tokens, samples, tokens of the pooling, its probe
    assert traffic.encoder["tensor"].calls == {"all_reduce": calls + 2}  # squares; flags
    two = planned(*keys, nodes=1, per_node=8).estimate.traffic
    # Buckets of 5e7 numbers, whole parameters, from the last to the first.
    buckets = -(-held(4) // 50_000_000)
    assert two.encoder["data"] == Collectives({"all_reduce": 4 * held(4)}, {"all_reduce": buckets})


def test_times_of_groups_follow_from_their_links():
    job = planned()
    traffic, time = job.estimate.traffic, job.estimate.time
    # A tensor group of four: three quarters of what is gathered and scattered, twice for the
    # all-reduces, over a GPU's link of 450 GB/s at 85 %; 15 us a call.
    tensor = traffic.of("tensor")
    sizes = tensor.bytes["all_gather"] + tensor.bytes["reduce_scatter"]
    inside = 0.75 * (sizes + 2 * tensor.bytes["all_reduce"]) / (0.85 * 450e9)
    inside += sum(tensor.calls.values()) * 15e-6
    # Four data groups, two members a node, share the node's network of 400 GB/s.
    data = traffic.of("data")
    sizes = data.bytes["all_gather"] + data.bytes["reduce_scatter"] + 2 * data.bytes["all_reduce"]
    between = 15 / 16 * sizes / (0.85 * 100e9) + sum(data.calls.values()) * 40e-6
    beside = 0.5 * sizes / (0.85 * 450e9) + sum(data.calls.values()) * 15e-6
    # and the losses' all-reduce, of twelve bytes
    assert time.network == pytest.approx(between + 40e-6, rel=1e-4)
    assert time.node == pytest.approx(inside + beside + 15e-6, rel=1e-4)


def test_products_are_divided_but_for_the_patch_embedding():
    alone, four = (planned(tensor=n).estimate.time.encoder for n in (1, 4))
    patches = 2 * (2 * 588 * WIDTH) * TOKENS * 128 / (0.45 * 989e12)
    # Four times the samples on each of a quarter as many data ranks.
    assert four == pytest.approx(alone + 3 * patches, rel=1e-6)


def test_every_tensor_rank_loads_its_groups_samples():
    job = planned()
    steps_per_s = 1 / job.estimate.time.total
    assert job.cores["image"] == pytest.approx(4 * 16_384 * steps_per_s / 16 * 1.956e-3)


def test_the_text_says_what_each_group_exchanges():
    job = planned("run.micro_batch=256")
    lines = [*plan_lines(job.config, job.plan), *job_lines(job)]
    assert sum(line.startswith("exchanged    tensor ranks, ") for line in lines) == 3
    assert sum(line.startswith("exchanged    data ranks, ") for line in lines) == 3
    (said,) = (line for line in lines if line.startswith("exchanged    all ranks, "))
    assert (
        said == "exchanged    all ranks, all_reduce: encoder nothing, heads 12 B in 1 call per step"
    )
    assert (
        "each rank    encoder: ZeRO 1, one of 4 tensor ranks with a part of the tokens, bf16, "
        "nothing recomputed"
    ) in lines
    # Into a node: of four data groups what the other 15 nodes have.
    data = job.estimate.traffic.of("data").bytes
    brought = 4 * 15 / 16 * (sum(data.values()) + data["all_reduce"]) + 2 * 12 * 15 / 16
    assert f"exchanged    {brought / 1e9:.3g} GB into each node" in "\n".join(lines)
    told = job_object(job)
    assert told["exchanged"].keys() == {"data", "tensor", "world"}
    assert all({"sequence", "tensor_ranks"} <= layout.keys() for layout in told["layouts"])


def test_a_batch_for_the_data_ranks_is_enough():
    config = config_of("run.tensor_parallel=8", "run.global_batch=16")
    assert batch_problems(config, 128) == []
    (problem,) = batch_problems(config, 256)
    assert problem.startswith("run.global_batch=16 gives source image 16 samples for 32 data ranks")
    assert make_plan(config, 128).rank.samples.most == 1
    notes = preflight(config, 128).notes
    idle = preflight(replace(config, run=replace(config.run, micro_batch=2)), 128).notes
    assert "a data rank's share of the batch is 1" in " ".join(idle)
    assert "no effect" not in " ".join(notes)


def test_a_layout_that_cannot_be_is_refused_before_it_is_planned(
    capsys: pytest.CaptureFixture[str],
):
    call = ["plan", f"pretrain/{STAGE_ONE}", "run.tensor_parallel=8", "--gpus-per-node", "4"]
    assert cli.run(call) == 2
    assert "run.tensor_parallel=8 does not divide the 4 ranks" in capsys.readouterr().err
    config = config_of("run.tensor_parallel=8")
    assert rank_problems(config, 4) == preflight(config, 4, "h200").config != []


def test_memory_is_that_of_the_configs_own_layout():
    keys = ("model.preset=gigantic", "run.zero_stage=1", "run.micro_batch=64")
    text = memory_problem(config_of(*keys), 8, 8, "l40s")
    assert text is not None
    assert memory_problem(config_of(*keys, "run.tensor_parallel=8"), 8, 8, "l40s") is None
    fix = text.partition("; use ")[2].split()
    assert memory_problem(config_of(*keys, *fix), 8, 8, "l40s") is None


@pytest.mark.parametrize(
    ("preset", "width", "depth", "mlp", "total"),
    [("giant", 1536, 36, 6144, 1_049_172_480), ("gigantic", 1664, 48, 8192, 1_880_706_432)],
)
def test_the_large_presets(preset: str, width: int, depth: int, mlp: int, total: int):
    job = planned(f"model.preset={preset}", "run.zero_stage=2", tensor=8)
    assert job.plan.parameters == total
    memory, ranks = job.estimate.memory, 16
    cut = (depth + 1) * (4 * width**2 + 2 * width * mlp + 3 * width + mlp)
    part = cut // 8 + (total - cut)
    assert memory["weights"] == pytest.approx(2 * part, rel=1e-5)
    assert memory["gradients"] == pytest.approx(2 * part / ranks, rel=1e-5)
    assert memory["master weights and moments"] == pytest.approx(12 * part / ranks, rel=1e-5)
    n = TOKENS
    flops = 3 * (depth * ((8 * width**2 + 4 * width * mlp) * n + 4 * n**2 * width))
    flops += 3 * 4 * width**2 * n + 2 * (2 * 588 * width * n)
    (view,) = job.plan.sources[0].views
    assert view.flops == pytest.approx(flops, rel=1e-9)
    # A bucket takes half a billion gradients.
    assert job.estimate.traffic.encoder["data"].calls["all_reduce"] == 1 + 2
    whole = planned(f"model.preset={preset}", "run.zero_stage=2", tensor=1)
    buckets = {"giant": 3, "gigantic": 4}[preset]
    assert whole.estimate.traffic.encoder["data"].calls["all_reduce"] == buckets + 2


def test_a_step_is_that_of_the_rank_with_most_and_counts_placeholders():
    # Seven samples of two tokens on two ranks, two at once: four on the fuller one.
    assert deal((7,), 2, 2).fullest([2.0]) == [(4.0, 2, 2)]
    # Three samples of five on one rank, at most two at once: one, then two.
    assert sorted(deal((3,), 1, 2).fullest([5.0])) == [(5.0, 1, 1), (10.0, 2, 1)]
    # Nobody has a sample: a placeholder.
    assert deal((0,), 2, 0).fullest([5.0]) == [(0.0, 1, 1)]
