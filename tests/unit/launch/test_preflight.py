"""Preflight and plan: everything wrong is found at once, before a process starts."""

import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from launch import cli
from launch.commands.options import write_resolved
from launch.plan import make_plan, plan_lines
from launch.preflight import preflight
from launch.run_folder import checkpoint_bytes
from ovtrain.config.data import DataConfig, SourceConfig
from ovtrain.config.head import HeadConfig
from ovtrain.config.model import ModelConfig
from ovtrain.config.train import RunConfig, TrainConfig
from ovtrain.schema.errors import ConfigError
from ovtrain.schema.labels import CentroidStore
from ovtrain.schema.manifest import ShardManifest
from tests.helpers.shards import write_labels, write_shards
from tests.helpers.world import environment


def keys_of(folder) -> list[str]:
    from ovtrain.schema.manifest import ShardIndex

    tars = [folder / shard.name for shard in ShardManifest.read(folder).shards]
    return [key for tar in tars for key in ShardIndex.read(tar.with_suffix(".npz")).keys]


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    """Sound: 12 images with labels."""
    shards, labels = tmp_path / "image", tmp_path / "labels"
    manifest = write_shards(shards, "image", 12)
    write_labels(labels, manifest, keys_of(shards), classes=7)
    source = SourceConfig("image", str(shards), str(labels))
    data = DataConfig(sources=[source], size=28, clip_frames=8, token_budget=16, chunks=4)
    return TrainConfig(ModelConfig("tiny"), data, run=RunConfig(steps=3, global_batch=4))


def with_source(config: TrainConfig, **changed: str) -> TrainConfig:
    source = replace(config.data.sources[0], **changed)
    return replace(config, data=replace(config.data, sources=[source]))


def test_a_sound_config_has_no_problem(config):
    found = preflight(config, world=2)
    assert (found.config, found.data) == ([], [])
    assert "source image: 12 samples in 2 shards" in found.notes
    assert "source image: 7 classes" in found.notes


def test_all_data_problems_come_at_once(config, tmp_path):
    manifest = ShardManifest.read(tmp_path / "image")
    (tmp_path / "image" / manifest.shards[0].name).unlink()
    config = replace(config, run=replace(config.run, init_from=str(tmp_path / "absent")))
    found = preflight(config, world=1)
    assert [shard in "\n".join(found.data) for shard in (manifest.shards[0].name, "init_from")] == [
        True,
        True,
    ]
    with pytest.raises(ConfigError, match=r"is missing(.|\n)*init_from"):
        found.check("x")
    found.check("x", allow_missing_data=True)


def test_a_start_from_a_folder_in_the_public_format_is_known(config, tmp_path):
    (tmp_path / "public").mkdir()
    config = replace(config, run=replace(config.run, init_from=str(tmp_path / "public")))
    assert "in the public format" in preflight(config, world=1).data[0]
    (tmp_path / "public" / "config.json").write_text("{}")
    assert preflight(config, world=1).data == []


def test_labels_of_other_shards_are_refused(config, tmp_path):
    manifest = replace(ShardManifest.read(tmp_path / "image"), fingerprint="f" * 32)
    write_labels(tmp_path / "other", manifest, keys_of(tmp_path / "image"), classes=7)
    found = preflight(with_source(config, labels=str(tmp_path / "other")), world=1)
    assert len(found.data) == 1
    assert "labels made from shards ffffffffffff" in found.data[0]


WIDTHS = [(7, 64, True), (7, 32, False), (8, 64, False)]


@pytest.mark.parametrize(("clusters", "width", "fits"), WIDTHS)
def test_centroids_that_no_head_can_start_from_are_named(config, tmp_path, clusters, width, fits):
    width = width * config.model.size.width // 64
    CentroidStore(np.ones((clusters, width), np.float32), "t").write(tmp_path / "centroids")
    config = with_source(config, centroids=str(tmp_path / "centroids"))
    found = preflight(replace(config, head=HeadConfig(init="centroids")), world=1)
    wanted = f"holds {clusters} centroids of width {width}"
    assert any(wanted in text for text in found.data) is not fits
    config = with_source(config, centroids=str(tmp_path / "nowhere"))
    found = preflight(replace(config, head=HeadConfig(init="centroids")), world=1)
    assert any("no centroids store here" in text for text in found.data)


def test_labels_that_are_absent_are_named(config, tmp_path):
    found = preflight(with_source(config, labels=str(tmp_path / "none")), world=1)
    assert "no labels store here" in found.data[0]


def test_every_rank_needs_a_sample_of_every_source(config):
    assert preflight(config, world=4).config == []
    problem = preflight(config, world=8).config
    assert problem[0].endswith("4 samples for 8 ranks; use at least 8, or at most 4 ranks")
    problem = preflight(config, world=6).config
    assert problem[0].endswith("use at least 6, or at most 4 ranks, or run.tensor_parallel=3")
    sharing = replace(config, run=replace(config.run, tensor_parallel=3))
    assert preflight(sharing, world=6).config == []
    assert "5 data ranks; use at least 5, or at most 12 ranks" in preflight(sharing, 15).config[0]


def test_tensor_groups_across_nodes_are_noted(config):
    sharing = replace(config, run=replace(config.run, tensor_parallel=3))
    crossing = "run.tensor_parallel=3 does not divide a node's 2 ranks: tensor groups lie across"
    assert crossing in "\n".join(preflight(sharing, 6, per_node=2).notes)
    assert "across nodes" not in "\n".join(preflight(sharing, 6, per_node=3).notes)
    assert "across nodes" not in "\n".join(preflight(sharing, 6).notes)


def test_clips_of_another_size_are_refused(config, tmp_path):
    write_shards(tmp_path / "video", "video", 4, frames=8, size=28)
    config = with_source(config, shards=str(tmp_path / "video"), labels="")
    config = replace(config, data=replace(config.data, size=56, token_budget=64))
    found = preflight(config, world=1)
    assert any("height=28 in the shards, the config asks 56" in text for text in found.data)


def test_a_sources_own_side_counts(config, tmp_path):
    """Clips of 56 pixels, shown at 28: as large as they have to be, and the budget fits them."""
    write_shards(tmp_path / "video", "video", 4, frames=8, size=56)
    video = SourceConfig("video", str(tmp_path / "video"))
    data = replace(config.data, size=56, sources=[replace(video, size=28)])
    assert preflight(replace(config, data=data), world=1).data == []
    data = replace(data, sources=[replace(video, size=56), SourceConfig("image", size=28)])
    found = preflight(replace(config, data=data), world=1)
    assert found.config == []
    assert "source video: data.token_budget=16 with views frames" in found.data[0]


def test_labels_with_other_classes_than_expected_are_named(config):
    source = replace(config.data.sources[0], classes=8)
    config = replace(config, data=replace(config.data, sources=[source]))
    (text,) = preflight(config, world=1).data
    assert text.startswith(f"source image: {source.labels}: labels of 7 classes; allowed: 8")


def test_the_plan_counts_tokens_and_head_rows(config):
    plan = make_plan(config, world=2)
    assert plan.tokens == 4 * 4  # 4 images of 2 x 2 patches
    text = "\n".join(plan_lines(config, plan))
    assert "head of 7 classes" in text
    assert "head image: 3 to 4 rows (the first rank 0 to 2, the last 3 to 6)" in text


def test_a_dry_run_without_data_fails_unless_it_is_allowed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = ["train", "pretrain/debug-stage2", "--nproc", "2", "--dry-run"]
    assert cli.run(call) == 2
    assert "no shard manifest here" in capsys.readouterr().err
    assert cli.run([*call, "--allow-missing-data"]) == 0
    shown = capsys.readouterr()
    assert "3,227,328 parameters" in shown.out
    assert "not found yet  source video" in shown.err
    assert list(tmp_path.iterdir()) == []  # a dry run leaves nothing


def test_a_dry_run_with_a_wrong_config_always_fails(capsys):
    call = ["train", "pretrain/debug-stage2", "run.global_batch=2", "--nproc", "2", "--dry-run"]
    assert cli.run([*call, "--allow-missing-data"]) == 2
    assert "use at least 4" in capsys.readouterr().err


def test_the_preflight_imports_no_torch(config, tmp_path):
    """It runs on login nodes, where an import of torch takes a minute of a network disk's time."""
    write_resolved(config, tmp_path / "config.yaml")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['deepspeed'] = None\n"
        "from launch.preflight import preflight\n"
        "from launch.commands.options import load_training\n"
        f"found = preflight(load_training({str(tmp_path / 'config.yaml')!r}, ()), 2)\n"
        "assert (found.config, found.data) == ([], []), found\n"
        "assert len(found.notes) > 2, found\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_ten_thousand_shards_are_looked_at_in_seconds(config, tmp_path):
    folder = tmp_path / "image"
    manifest = ShardManifest.read(folder)
    shards = manifest.shards[:1] * 10_000
    replace(manifest, shards=shards).write(folder)
    begin = time.monotonic()
    found = preflight(config, world=2)
    assert (found.config, found.data) == ([], [])
    assert time.monotonic() - begin < 5  # 0.6 s on two idle cores


def out_of(config: TrainConfig, out: object) -> TrainConfig:
    return replace(config, run=replace(config.run, out=str(out)))


def test_a_preflight_leaves_nothing_behind(config, tmp_path):
    (tmp_path / "runs").mkdir()
    assert preflight(out_of(config, tmp_path / "runs" / "a" / "b"), world=2).data == []
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_file_in_the_way_is_named(config, tmp_path):
    (tmp_path / "runs").write_text("")
    (problem,) = preflight(out_of(config, tmp_path / "runs" / "a"), world=2).data
    assert f"run.out: {tmp_path / 'runs'} is a file" in problem
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "checkpoints").write_text("")
    (problem,) = preflight(out_of(config, tmp_path / "mine"), world=2).data
    assert f"{tmp_path / 'mine' / 'checkpoints'} is a file" in problem


def test_folders_that_nobody_may_write_to_are_named(config):
    """/proc takes no files, root's neither."""
    config = out_of(config, "/proc/nowhere/run")
    config = replace(config, data=replace(config.data, cache_dir="/proc/cache"))
    out, cache = preflight(config, world=2).data
    assert out.startswith("run.out=/proc/nowhere/run: nothing can be written in /proc (")
    assert cache.startswith("data.cache_dir=/proc/cache: nothing can be written in /proc (")


def test_a_folder_that_is_being_trained_in_is_named(config, tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from ovtrain.schema.lock import take\n"
        "take(Path(sys.argv[1]), 'run.out'); print('held', flush=True); time.sleep(60)"
    )
    config, command = out_of(config, tmp_path / "run"), [sys.executable, "-c", hold]
    with subprocess.Popen(
        [*command, str(tmp_path / "run")], env=environment(), stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            (problem,) = preflight(config, world=2).data
            assert f"another process trains here (process {other.pid} on " in problem
        finally:
            other.kill()
    assert preflight(config, world=2).data == []


def test_a_folder_of_another_config_is_refused_with_the_keys(config, tmp_path):
    config = out_of(config, tmp_path / "run")
    write_resolved(config, tmp_path / "run" / "config.yaml")
    other = replace(config, run=replace(config.run, seed=7, log_every=3))
    assert preflight(other, world=2).config == []  # it has never trained
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    assert preflight(config, world=2).config == []
    (problem,) = preflight(other, world=2).config
    assert "belongs to another config: run.seed=7 (was 0); undo" in problem


def test_checkpoints_that_do_not_fit_are_counted_out(config, tmp_path, monkeypatch):
    run = replace(config.run, out=str(tmp_path / "run"), steps=100, checkpoint_every=10, keep=2)
    config = replace(config, run=replace(run, keep_every=20))
    assert preflight(config, world=2).data == []
    one = checkpoint_bytes(config, [7])
    most = 6  # 20, 40, 60 for good; 80 and 90, the last two; 100, being written
    free = SimpleNamespace(free=most * one - 1)
    monkeypatch.setattr("launch.run_folder.shutil.disk_usage", lambda _: free)
    (problem,) = preflight(config, world=2).data
    assert f"up to {most} checkpoints of " in problem
    step = tmp_path / "run" / "checkpoints" / "step-00000010"
    step.mkdir(parents=True)
    (step / "x").write_bytes(b"1")
    assert preflight(config, world=2).data == []  # a byte of it is there already


def test_settings_without_the_effect_they_promise_are_noted(config):
    config = replace(config, run=replace(config.run, global_batch=16, micro_batch=3))
    notes = "\n".join(preflight(config, world=8).notes)
    assert "run.micro_batch=3 has no effect: a rank's share of the batch is 2" in notes
    assert "head.sample_rate=0.1 of 7 classes draws 0.7 rows per step over 8 ranks" in notes


def test_fewer_classes_than_ranks_are_refused(config):
    config = replace(config, run=replace(config.run, global_batch=16))
    (problem,) = preflight(config, world=8).config
    assert problem.startswith("source image has 7 classes for 8 ranks")
    assert problem.endswith("allowed: 7 ranks at most")
