"""What each rank of a cluster holds, against numbers computed by hand, without data or a GPU."""

from dataclasses import replace

import pytest

from launch import cli
from launch.plan import Plan, make_plan, plan_lines
from launch.plan.memory import memory_lines, rank_memory
from launch.ranks import Span
from ovtrain.config.data import SourceConfig
from ovtrain.config.load import data_folder, find_config, load
from ovtrain.config.train import TrainConfig
from ovtrain.costs.zero import EncoderState

RECIPES = sorted((data_folder("configs") / "pretrain").glob("*.yaml"))
CLUSTER = ["--nodes", "16", "--nproc", "8"]
WORLD = 128


def planned(name: str, *overrides: str, world: int = WORLD) -> Plan:
    return make_plan(load(TrainConfig, find_config(f"pretrain/{name}"), overrides), world)


def memory_of(name: str, *overrides: str) -> dict[str, int]:
    config = load(TrainConfig, find_config(f"pretrain/{name}"), overrides)
    return rank_memory(config, make_plan(config, WORLD))


def test_stage_one_of_the_paper_on_128_ranks():
    rank = planned("vitl14-stage1-224px").rank
    # 315,509,760 parameters: 2 bytes each of weights and gradients, 12 of master copy and moments
    # over all ranks.
    assert rank.state == EncoderState(631_019_520, 631_019_520, 4 * 2_464_920, 8 * 2_464_920 + 8)
    (head,) = rank.heads
    assert head.rows == Span(15_625, 15_625)  # 2,000,000 / 128
    assert (head.first, head.last) == (range(15_625), range(1_984_375, 2_000_000))
    assert head.rows_bytes == 64_000_000  # 15,625 rows x 1,024 numbers x 4 bytes
    assert head.optimizer_bytes == 15_625 * (2 * 4096 + 12)
    assert (rank.micro_steps, rank.samples, rank.tokens) == (1, Span(128, 128), Span(32768, 32768))


def test_memory_of_stage_one_is_that_of_its_ranks():
    plan, memory = planned("vitl14-stage1-224px"), memory_of("vitl14-stage1-224px")
    state, (head,) = plan.rank.state, plan.rank.heads
    assert memory["weights"] == state.weights
    assert memory["gradients"] == state.gradients
    assert memory["master weights and moments"] == state.optimizer
    assert (memory["head rows"], memory["head moments"]) == (head.rows_bytes, head.optimizer_bytes)
    # 24 blocks of 10 x 1,024 + 2 x 4,096 numbers, 588 and 5 x 1,024 around them, 2 bytes each.
    assert memory["activations"] == 32_768 * 2 * (24 * 18_432 + 588 + 5_120)
    # A copy and a gradient of 200,000 drawn rows and of the positives among the others: 10 labels
    # of 16,384 samples on 2 M classes hit 157,309.
    drawn = 200_000 + 0.9 * 157_334
    assert memory["drawn centers"] == pytest.approx(drawn / 128 * 1024 * (2 + 2), rel=1e-3)


def test_stage_two_of_the_paper_shows_pictures_at_448_beside_clips_at_224():
    plan = planned("vitl14-stage2-64f-2048tok")
    assert {s.name: (s.size, s.longest) for s in plan.sources} == {
        "video": (224, 2048),
        "image": (448, 1024),
        "document": (448, 1024),
    }
    of = {share.source: share for share in plan.rank.sources}
    assert plan.rank.micro_steps == 8  # 192 samples a rank, 24 at once
    assert of["video"].samples == Span(12, 12)
    assert of["video"].tokens == Span(24_576, 24_576)
    assert of["image"].tokens == Span(8_192, 8_192)
    assert of["document"].tokens == Span(4_096, 4_096)
    assert plan.rank.tokens == Span(36_864, 36_864)
    rows = {head.source: head.rows for head in plan.rank.heads}
    assert rows == {
        "video": Span(3_125, 3_125),
        "image": Span(15_625, 15_625),
        "document": Span(2_853, 2_854),  # 365,187 / 128 = 2,853.02
    }


@pytest.mark.parametrize(
    ("stage", "weights", "gradients"),
    [
        (1, 631_019_520, 631_019_520),
        # Stage 3 keeps parameters of up to 100,000 numbers whole: biases, norms and the probe.
        (3, 4_929_840 + 2 * (24 * 13_312 + 4_096 + 11_264), 4_929_840),
    ],
)
def test_zero_stages_divide_what_a_rank_holds(stage: int, weights: int, gradients: int):
    state = planned("vitl14-stage1-224px", f"run.zero_stage={stage}").rank.state
    assert (state.weights, state.gradients) == (weights, gradients)


def test_the_plain_backend_divides_nothing_and_keeps_float32():
    rank = planned("vitl14-stage1-224px", "run.backend=ddp").rank
    # and a count of steps for each of 24 blocks' 12 parameters and the 15 around them
    assert rank.state.total == 16 * 315_509_760 + 4 * (24 * 12 + 15)


def test_ranks_that_hold_more_than_others_are_the_span():
    rank = planned("vitl14-stage1-224px", "run.global_batch=130").rank
    assert rank.samples == Span(1, 2)
    assert rank.tokens == Span(256, 512)
    memory = memory_of("vitl14-stage1-224px", "run.global_batch=130")
    assert memory["activations"] == 512 * 2 * (24 * 18_432 + 588 + 5_120)
    assert str(rank.tokens) == "256 to 512"


def test_a_head_of_unknown_classes_is_said_to_be_left_out():
    config = load(TrainConfig, find_config("pretrain/vitl14-stage1-224px"))
    (source,) = config.data.sources
    unknown = replace(config.data, sources=[replace(source, classes=0)])
    (source_line,), total = left_out(replace(config, data=unknown))
    assert source_line.endswith("per step, head unknown until its labels exist")
    assert total.endswith("; without the heads of image, whose classes are not known")
    bare = replace(config.data, sources=[replace(source, classes=0, labels="")])
    (source_line,), total = left_out(replace(config, data=bare))
    assert source_line.endswith("per step, no head")
    assert "without" not in total


def left_out(config: TrainConfig) -> tuple[list[str], str]:
    """The lines of sources, and of the whole memory."""
    plan = make_plan(config, WORLD)
    total = memory_lines(rank_memory(config, plan), plan)[-1]
    return [line for line in plan_lines(config, plan) if line.startswith("source")], total


@pytest.mark.parametrize(("name", "kind"), [("ocr-en", "document"), ("my-image", "image")])
def test_sources_without_shards_are_known_by_their_names(name: str, kind: str):
    config = load(TrainConfig, find_config("pretrain/vitl14-stage1-224px"))
    data = replace(config.data, sources=[SourceConfig(name)])
    (source,) = make_plan(replace(config, data=data), WORLD).sources
    assert (source.kind, source.longest) == (kind, 256)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_passes_a_dry_run_for_128_gpus(path, tmp_path, monkeypatch, capsys):
    """On a machine without them and without data. The debug pair is made for two ranks and has no
    sample for each of 128: it gets some."""
    monkeypatch.chdir(tmp_path)
    debug = path.stem.startswith("debug")
    more = ["run.global_batch=256"] if debug else []
    call = ["train", f"pretrain/{path.stem}", *more, *CLUSTER, "--dry-run", "--allow-missing-data"]
    assert cli.run(call) == 0
    shown = capsys.readouterr().out
    assert "on 128 ranks" in shown
    assert "memory       total: " in shown
    assert "GiB" not in shown.partition("encoder      ")[2].partition("preflight")[0]
    assert ("without the heads of" in shown) == debug  # classes are expected by all others
    assert list(tmp_path.iterdir()) == []


def test_nodes_without_a_dry_run_name_the_command_that_starts_them(capsys):
    assert cli.run(["train", "pretrain/debug-stage1", *CLUSTER]) == 2
    assert "`ovtrain launch slurm`" in capsys.readouterr().err


def test_a_dry_run_and_a_plan_give_the_same_bytes_and_rows(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "pretrain/vitl14-stage1-224px"
    told: list[list[str]] = []
    for call in (
        ["plan", name, *CLUSTER],
        ["train", name, *CLUSTER, "--dry-run", "--allow-missing-data"],
    ):
        assert cli.run(call) == 0
        kinds = ("source", "each rank", "memory")
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(kinds)]
        told.append([line.partition(" of 141 GB")[0] for line in lines if "  " in line])
    assert told[0] == told[1]
    assert told[0][0].endswith(
        "2,000,000 classes: 200,000 drawn per step, about 341,578 with the batch's positives"
    )
    assert not any("GiB" in line for line in told[0])


def test_the_plan_takes_nodes(capsys):
    assert cli.run(["plan", "pretrain/vitl14-stage1-224px", *CLUSTER]) == 0
    assert "15,625 rows (the first rank 0 to 15,624" in capsys.readouterr().out


def test_too_few_samples_for_the_cluster_are_refused(capsys):
    call = ["train", "pretrain/debug-stage1", *CLUSTER, "--dry-run", "--allow-missing-data"]
    assert cli.run(call) == 2
    assert "16 samples for 128 ranks; use at least 128" in capsys.readouterr().err
