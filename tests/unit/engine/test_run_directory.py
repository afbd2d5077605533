"""A run directory belongs to one config; only free keys may change between a run and its
resumption."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.commands.options import write_resolved
from ovtrain.config.identity import FREE_KEYS, config_hash
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.engine.run_directory import claim
from ovtrain.observability.history import read_events
from ovtrain.schema.errors import CheckpointError
from ovtrain.schema.lock import FolderTaken
from tests.helpers.training import fit, typed_config
from tests.helpers.world import environment


@pytest.fixture
def config(setup_folder: Path, tmp_path: Path) -> TrainConfig:
    return typed_config(setup_folder, backend="ddp", steps=2, out=str(tmp_path / "run"))


@pytest.fixture
def trained(config: TrainConfig) -> TrainConfig:
    fit(config)
    return config


def test_the_resolved_config_is_written_and_reads_back(trained: TrainConfig):
    assert load(TrainConfig, Path(trained.run.out) / "config.yaml") == trained
    claim(trained)


def test_free_keys_may_change(trained: TrainConfig):
    run = replace(trained.run, log_every=3, checkpoint_every=7, micro_batch=4)
    other = replace(trained, run=run, data=replace(trained.data, workers=2))
    claim(other)
    assert config_hash(other) == config_hash(trained)


def test_other_changes_are_refused_by_name(trained: TrainConfig):
    other = replace(trained, optim=replace(trained.optim, lr=5.0), run=replace(trained.run, seed=9))
    with pytest.raises(CheckpointError) as caught:
        claim(other)
    assert "optim.lr=5.0 (was 0.001)" in str(caught.value)
    assert "run.seed=9 (was 0)" in str(caught.value)
    assert "choose another run.out" in str(caught.value)
    assert config_hash(other) != config_hash(trained)


def test_a_start_that_never_trained_leaves_no_claim(config: TrainConfig):
    claim(config)
    wrong = replace(config, run=replace(config.run, init_from="nowhere"))
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        fit(wrong)
    fit(config)


def test_a_start_that_failed_before_its_first_row_leaves_no_claim(config: TrainConfig):
    """Its start is on record, and stays there."""
    other = replace(config, run=replace(config.run, seed=9))
    metrics = Path(config.run.out) / "metrics.jsonl"
    claim(config)
    metrics.write_text('{"event": "start", "step": 0, "time": 1.0, "attempt": 0, "config": {}}\n')
    fit(other)
    first, second = read_events(metrics)
    assert (first["config"], second["attempt"], second["config"]["run"]["seed"]) == ({}, 1, 9)
    with pytest.raises(CheckpointError, match=r"run\.seed=0"):
        claim(config)


def test_what_a_killed_start_was_writing_is_removed_and_nothing_else(config: TrainConfig):
    out = Path(config.run.out)
    out.mkdir()
    left = [".metrics.jsonl.77.140.tmp", ".quarantine-00001.jsonl.77.140.tmp", ".run.json.8.9.tmp"]
    kept = [".report.html.77.140.tmp", ".mine.tmp", "metrics.jsonl"]
    for name in left + kept:
        (out / name).touch()
    claim(config)
    assert sorted(path.name for path in out.iterdir()) == sorted([*kept, "lock"])


HOLD = """
import sys, time
from launch.commands.options import write_resolved
from ovtrain.config.identity import FREE_KEYS, config_hash
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.engine.run_directory import claim
claim(load(TrainConfig, sys.argv[1]))
print("claimed", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(config: TrainConfig):
    path = write_resolved(config, Path(config.run.out).parent / "held.yaml")
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "claimed\n"
            with pytest.raises(FolderTaken, match=rf"\(process {first.pid} on .*another run.out"):
                claim(config)
        finally:
            first.kill()
    claim(config)


def test_every_free_key_exists(config: TrainConfig):
    for key in FREE_KEYS:
        section, name = key.split(".")
        assert hasattr(getattr(config, section), name), key


def test_checkpoints_hold_the_documented_files(config: TrainConfig):
    fit(config)
    step = Path(config.run.out) / "checkpoints" / "step-00000002"
    names = sorted(path.name for path in step.iterdir())
    assert names == [
        "encoder-00000-of-00001.safetensors",
        "head-image-000000000-000000023.safetensors",
        "head-video-000000000-000000040.safetensors",
        "manifest.json",
        "state.json",
    ]
    state = json.loads((step / "state.json").read_text())
    assert state["step"] == 2
    assert state["world_size"] == 1
    assert state["classes"] == {"video": 40, "image": 23}
    assert state["config"]["run"]["steps"] == 2
    assert state["code"]
    assert state["train"]["consumed"] == {"video": 8, "image": 8}
