"""A run directory belongs to one config; only free keys may change between a run and its
resumption."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.engine.run_directory import FREE_KEYS, claim, config_hash
from ovtrain.schema.errors import CheckpointError
from tests.helpers.training import fit, typed_config


@pytest.fixture
def config(setup_folder: Path, tmp_path: Path) -> TrainConfig:
    return typed_config(setup_folder, backend="ddp", steps=2, out=str(tmp_path / "run"))


def test_the_resolved_config_is_written_and_reads_back(config: TrainConfig):
    claim(config)
    assert load(TrainConfig, Path(config.run.out) / "config.yaml") == config
    claim(config)


def test_free_keys_may_change(config: TrainConfig):
    claim(config)
    run = replace(config.run, log_every=3, checkpoint_every=7, micro_batch=4)
    other = replace(config, run=run, data=replace(config.data, workers=2))
    claim(other)
    assert config_hash(other) == config_hash(config)


def test_other_changes_are_refused_by_name(config: TrainConfig):
    claim(config)
    other = replace(config, optim=replace(config.optim, lr=5.0), run=replace(config.run, seed=9))
    with pytest.raises(CheckpointError) as caught:
        claim(other)
    assert "optim.lr=5.0 (was 0.001)" in str(caught.value)
    assert "run.seed=9 (was 0)" in str(caught.value)
    assert "choose another run.out" in str(caught.value)
    assert config_hash(other) != config_hash(config)


def test_every_free_key_exists(config: TrainConfig):
    for key in FREE_KEYS:
        section, name = key.split(".")
        assert hasattr(getattr(config, section), name), key


def test_checkpoints_hold_the_documented_files(config: TrainConfig):
    fit(config)
    step = Path(config.run.out) / "checkpoints" / "step-00000002"
    names = sorted(path.name for path in step.iterdir())
    assert names == [
        "encoder.safetensors",
        "head-image-000000000-000000023.safetensors",
        "head-video-000000000-000000040.safetensors",
        "manifest.json",
        "state.json",
    ]
    state = json.loads((step / "state.json").read_text())
    assert state["step"] == 2
    assert state["world_size"] == 1
    assert state["classes"] == {"video": 40, "image": 23}
    assert state["train"]["consumed"] == {"video": 8, "image": 8}
