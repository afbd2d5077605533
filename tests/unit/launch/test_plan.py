"""A job's plan against arithmetic written out here, none of it the planner's own."""

import json
from typing import Any

import pytest

from launch import cli
from launch.plan.cluster import Request, cluster_of
from launch.plan.job import JobPlan, memory_problem, plan_job
from launch.plan.step import plan_lines
from launch.plan.text import job_lines
from ovtrain.config.load import find_config, load
from ovtrain.config.train import TrainConfig
from ovtrain.costs import head
from ovtrain.schema.errors import ConfigError

STAGE_ONE, STAGE_TWO = "vitl14-stage1-224px", "vitl14-stage2-64f-2048tok"
DAY = 86_400
PARAMETERS = 315_509_760


def config_of(name: str, *overrides: str) -> TrainConfig:
    return load(TrainConfig, find_config(f"pretrain/{name}"), overrides)


def planned(name: str, gpu: str = "h200", *overrides: str, **asked: Any) -> JobPlan:
    settings: dict[str, Any] = {"nodes": 16, "per_node": 8} | asked
    return plan_job(config_of(name, *overrides), Request(gpu=gpu, **settings))


def training_flops(n: int) -> float:
    """Of ViT-L/14: three times 24 layers of 24 d^2 n + 4 n^2 d, the patch embedding (588 inputs,
    whose gradient of the input is never taken) and the pooling's keys and values."""
    d = 1024
    return 3 * (24 * (24 * d**2 * n + 4 * n**2 * d) + 4 * d**2 * n) + 2 * (2 * 588 * d * n)


@pytest.mark.parametrize(
    ("name", "flops", "a800", "h200"),
    [(STAGE_ONE, 6.33e21, 4.1, 1.05), (STAGE_TWO, 1.43e22, 9.2, 2.4)],
)
def test_the_papers_job_on_128_gpus(name: str, flops: float, a800: float, h200: float):
    """13 B pictures of 256 tokens; 2 B clips of 2,048 tokens and 2 B pictures of 1,024. Peaks of
    312 and 989 TFLOP/s, 45 and 55 % of them reached."""
    samples = {STAGE_ONE: {256: 13e9}, STAGE_TWO: {2048: 2e9, 1024: 2e9}}[name]
    whole = sum(count * training_flops(n) for n, count in samples.items())
    assert whole == pytest.approx(flops, rel=2e-3)
    for gpu, peak, mfu, days in (("a800", 312e12, 0.45, a800), ("h200", 989e12, 0.55, h200)):
        job = planned(name, gpu, mfu=mfu)
        # The last step fills the batch up: less than one batch too many.
        assert job.flops == pytest.approx(whole, rel=1e-5)
        alone = whole / (128 * peak * mfu) / DAY
        assert alone == pytest.approx(days, rel=0.01)
        assert job.plan.steps * job.estimate.time.encoder / DAY == pytest.approx(alone, rel=1e-5)
        assert alone < job.seconds / DAY < 1.1 * alone  # with heads, links and saves
        assert job.mfu == pytest.approx(whole / (128 * peak) / job.seconds, rel=1e-4)
        assert 0.9 * mfu < job.mfu < mfu


def test_what_a_node_and_step_exchange_for_the_encoder():
    """bf16 gradients and weights over 16 nodes: 1.18 GB into each node if gradients were
    reduce-scattered; DeepSpeed's stage 1 all-reduces them, half as much again."""
    once = 2 * PARAMETERS * 15 / 16
    assert 2 * once == pytest.approx(1.18e9, rel=3e-3)
    job = planned(STAGE_ONE, "a800", network_gbs=200)
    sent = job.estimate.traffic.encoder["data"]
    assert sent.bytes == {"all_gather": 2 * PARAMETERS, "all_reduce": 2 * PARAMETERS + 8}
    # One bucket of gradients, two groups of weights and two norms.
    assert sent.calls == {"all_gather": 2, "all_reduce": 1 + 2}
    # At 85 % of 8 x 200 Gb/s, with what the heads exchange: 16,384 bf16 embeddings gathered and
    # their float32 gradients scattered, and ten int32 labels of each sample.
    heads = 16_384 * (2 * 1024 + 4 * 1024 + 4 * 10) * 15 / 16
    # and labels, embeddings, their gradients and the losses
    assert job.estimate.traffic.total.count == 5 + 4
    latency = 9 * 40e-6
    seconds = (3 * once + heads) / (0.85 * 200e9) + latency
    assert job.estimate.time.network == pytest.approx(seconds, rel=1e-3)
    assert 2 * once / (0.85 * 25e9) == pytest.approx(55.7e-3, rel=3e-3)  # one adapter


def test_bytes_of_the_papers_heads():
    """2 M, 400 k and 365,187 classes of 1,024 float32 numbers, two moments and 12 bytes a row."""
    job = planned(STAGE_TWO)
    rows = 2_000_000 + 400_000 + 365_187
    fullest = 15_625 + 3_125 + 2_854
    assert job.estimate.memory["head rows"] == fullest * 4096
    assert job.estimate.memory["head moments"] == fullest * (2 * 4096 + 12)
    assert job.save.bytes == 12 * PARAMETERS + rows * (3 * 4096 + 12)
    assert planned(STAGE_ONE).save.bytes == 12 * PARAMETERS + 2_000_000 * (3 * 4096 + 12)
    # On one GPU, the 32.8 GB of dense AdamW less its dense gradient, and the counts of rows.
    alone = planned(STAGE_ONE, nodes=1, per_node=1).estimate.memory
    of_head = alone["head rows"] + alone["head moments"]
    assert of_head - 2_000_000 * 12 == pytest.approx(32.8e9 * 3 / 4, rel=2e-3)


def test_a_saves_stall_is_the_copy_of_a_ranks_part_and_a_foreground_save_waits_for_the_disk():
    job = planned(STAGE_ONE, disk_gbs=2)
    assert job.save.write_s == pytest.approx(job.save.bytes / 32e9)
    assert job.save.stall_s == pytest.approx(job.save.bytes / 128 / 12e9)
    waiting = planned(STAGE_ONE, "h200", "run.background_saves=false", disk_gbs=2)
    assert waiting.save.stall_s == waiting.save.write_s
    assert waiting.step_s - waiting.estimate.time.total == pytest.approx(
        waiting.save.write_s / 2000
    )


def test_loader_cores_follow_from_the_measured_rates():
    job = planned(STAGE_TWO)
    steps_per_s = 1 / job.estimate.time.total
    clips = 12_288 * steps_per_s / 16
    assert job.cores["video"] == pytest.approx(clips * 23.694e-3)
    # 448 px pictures: four times the pixels of the 224 px ones that were measured
    assert job.cores["image"] == pytest.approx(8_192 * steps_per_s / 16 * 4 * 1.956e-3)
    given = planned(STAGE_TWO, clips_per_s=10.0, pictures_per_s=100.0)
    assert given.cores["video"] == pytest.approx(clips / 10)


def test_positives_add_to_the_drawn_rows():
    """Ten labels of 16,384 samples on 2 M classes hit 157,300 of them; a tenth were drawn."""
    expected = 2_000_000 * (1 - (1 - 1 / 2_000_000) ** 163_840)
    rows = head.expected_rows(2_000_000, 0.1, 163_840)
    assert rows == pytest.approx(200_000 + 0.9 * expected, rel=1e-4)
    assert head.expected_rows(1000, 1.0, 50) == 1000


def test_optimizers_move_weights_moments_and_gradients():
    """Per parameter of the plain backend 4 bytes of weights and 8 of moments, read and written, and
    4 of gradients read; of ZeRO-1 the same on a part, and 2 bytes of bf16 weights and gradients.
    The head's rows are the same in both, so the difference is the encoder's."""
    plain, zero_one = (
        planned(STAGE_ONE, "h200", f"run.backend={name}").estimate.time.updates
        for name in ("ddp", "deepspeed")
    )
    of_a_parameter = (2 * 12 + 4) - (2 * 12 + 2 + 2) / 128
    expected = of_a_parameter * PARAMETERS / 4800e9
    assert plain - zero_one == pytest.approx(expected, rel=1e-4)


def test_the_plain_backend_keeps_activations_in_the_runs_precision():
    plain, zero_one, full = (
        planned(STAGE_ONE, "h200", *keys).estimate.memory
        for keys in (
            ["run.backend=ddp"],
            ["run.backend=deepspeed"],
            ["run.backend=ddp", "run.precision=fp32"],
        )
    )
    assert plain["activations"] == zero_one["activations"] == full["activations"] // 2
    copies = [memory["copies of weights"] for memory in (plain, zero_one, full)]
    assert copies == [2 * PARAMETERS, 0, 0]


def test_heads_of_unknown_classes_are_said_to_be_left_out():
    job = planned("debug-stage2", "cpu", nodes=1, per_node=2)
    (total,) = (line for line in job_lines(job) if line.startswith("memory       total"))
    assert total.endswith("fits; without the heads of video, image, whose classes are not known")
    assert "head rows" not in " ".join(job_lines(job))
    (saved,) = (line for line in job_lines(job) if line.startswith("checkpoint"))
    assert saved.endswith("; without the heads of video, image, whose classes are not known")


def test_one_node_and_one_rank_are_singular():
    job = planned(STAGE_ONE, nodes=1, per_node=1)
    text = "\n".join([*plan_lines(job.config, job.plan), *job_lines(job)])
    assert "samples on 1 rank\n" in text
    assert "machine      1 node of 1 h200" in text


def test_recomputed_blocks_cost_time_and_free_memory():
    kept, again = (planned(STAGE_ONE, "h200", f"model.recompute={k}").estimate for k in (0, 1))
    assert again.memory["activations"] < kept.memory["activations"] / 5
    # A forward pass is a third of a step, of which the last map of each block, 8 d^2 of 24 d^2, is
    # not computed again. Attention's products, patches and pooling are a little beside that.
    ratio = again.time.encoder / kept.time.encoder
    assert ratio == pytest.approx(1 + 1 / 3 * 16 / 24, rel=0.01)


def test_unknown_gpus_name_the_known_ones(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError, match=r"h200.*a800.*cpu"):
        memory_problem(config_of(STAGE_ONE), 128, 8, "h20")
    assert cli.run(["plan", f"pretrain/{STAGE_ONE}", "--gpu", "h20"]) == 2
    assert "--gpu h20: unknown; allowed: gb200" in capsys.readouterr().err
    call = ["plan", f"pretrain/{STAGE_ONE}", "--mfu", "0.4", "--tflops", "300"]
    assert cli.run(call) == 2
    assert "say the same" in capsys.readouterr().err


def test_more_than_the_peak_is_refused(capsys: pytest.CaptureFixture[str]):
    call = ["plan", f"pretrain/{STAGE_ONE}", "--gpu", "a100"]
    assert cli.run([*call, "--mfu", "5"]) == 2
    assert "--mfu 5: more than the peak; allowed: above 0, at most 1" in capsys.readouterr().err
    assert cli.run([*call, "--tflops", "313"]) == 2
    assert "--tflops 313: more than the peak of a100" in capsys.readouterr().err
    assert cluster_of(Request(1, 1, "a100", mfu=1.0)).tflops == 312
    assert cluster_of(Request(1, 1, "cpu", tflops=3.0)).tflops == 3  # a CPU has no data sheet here


def test_a_memory_in_a_gpus_name_is_the_gpus():
    assert cluster_of(Request(1, 1, "a100-40gb")).memory_gb == 40
    assert cluster_of(Request(1, 1, "a100-40gb", memory_gb=39)).memory_gb == 39
    assert cluster_of(Request(1, 1, "NVIDIA A100-SXM4-80GB")).memory_gb == 80
    assert cluster_of(Request(1, 1, "gb200")).memory_gb == 186


def test_a_batch_too_small_for_the_cluster_is_refused(capsys: pytest.CaptureFixture[str]):
    assert cli.run(["plan", "pretrain/debug-stage1", "--nodes", "16", "--nproc", "8"]) == 2
    assert "16 samples for 128 ranks; use at least 128" in capsys.readouterr().err


def test_the_text_holds_every_part(capsys: pytest.CaptureFixture[str]):
    call = ["plan", f"pretrain/{STAGE_TWO}", "--nodes", "16", "--gpus-per-node", "8"]
    assert cli.run([*call, "--gpu", "a800", "--mfu", "0.45"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if not line.startswith(("each rank", "memory", "layout"))]
    assert found[7:] == GOLDEN
    assert "memory       head rows: 88.5 MB" in lines
    assert "memory       total: 40.1 GB of 80 GB: fits" in lines
    assert sum(line.startswith("layout") for line in lines) == 1 + 4 * 4


GOLDEN = [
    (
        "machine      16 nodes of 8 a800: 312 TFLOP/s at most, 140.4 taken while computing, 80 "
        "GB; links 200 GB/s a GPU and direction, network 200 GB/s a node"
    ),
    "parameters   encoder 302,915,584, pooling 12,594,176, heads 2,831,551,488",
    "sample       video, codec (50.0%): 2,048 tokens, 4.979 TFLOP",
    "sample       video, frames (37.5%): 2,048 tokens, 4.979 TFLOP",
    "sample       video, tiling (12.5%): 2,048 tokens, 4.979 TFLOP",
    "sample       image, image (100.0%): 1,024 tokens, 2.18 TFLOP",
    "sample       document, image (100.0%): 1,024 tokens, 2.18 TFLOP",
    "exchanged    all_gather: encoder 631 MB in 2 calls, heads 60.2 MB in 9 calls per step",
    "exchanged    all_reduce: encoder 631 MB in 3 calls, heads 20 B in 1 call per step",
    "exchanged    reduce_scatter: encoder nothing, heads 101 MB in 8 calls per step",
    "exchanged    1.93 GB into each node from the others per step",
    (
        "step time    4919.7 ms: encoder 4894.7 ms, heads 1.7 ms, optimizers 0.1 ms, links in "
        "a node 10.9 ms, network 12.2 ms, saves 0.0 ms"
    ),
    "speed        4,995 samples/s, MFU 44.8%",
    (
        "duration     9.27 days (28,471 device-hours) for 162,761 steps; at an MFU of 45% "
        "alone 9.22 days"
    ),
    (
        "loading      4.9 cores a node (video 3.7, image 0.8, document 0.4); the config starts "
        "96 workers there"
    ),
    "checkpoint   37.8 GB, written in 472 ms, every 1.37 h; the loop waits 24.6 ms",
    (
        "recommended  run.backend=deepspeed run.zero_stage=1 run.tensor_parallel=1 "
        "run.micro_batch=48 model.recompute=0 (4919.2 ms a step)"
    ),
]


def test_json_holds_the_numbers_of_the_text(capsys: pytest.CaptureFixture[str]):
    call = ["plan", f"pretrain/{STAGE_ONE}", "--nodes", "16", "--gpus-per-node", "8", "--json"]
    assert cli.run(call) == 0
    told, job = json.loads(capsys.readouterr().out), planned(STAGE_ONE)
    assert (told["step_s"], told["mfu"], told["seconds"]) == (job.step_s, job.mfu, job.seconds)
    assert told["memory"] == job.estimate.memory
    for group, found in told["exchanged"].items():
        assert found["bytes"] == job.estimate.traffic.of(group).bytes
        assert found["calls"] == job.estimate.traffic.of(group).calls
    assert told["exchanged"].keys() == {"data", "world"}
    assert told["recommended"] == (job.recommended.layout.keys() if job.recommended else None)
    assert len(told["layouts"]) == 16
