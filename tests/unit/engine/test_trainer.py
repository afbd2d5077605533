"""The loop: a polite stop resumes exactly, states round-trip. What is not finite: test_gate.py."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ovtrain.checkpoint.restore import checkpoint_folder, open_run
from ovtrain.distributed.mesh import make_mesh
from ovtrain.distributed.parallelize import undivided
from ovtrain.engine.backend import PlainBackend
from ovtrain.engine.build import build
from ovtrain.engine.preemption import StopRequest
from ovtrain.engine.state import TrainState
from ovtrain.engine.trainer import Trainer
from ovtrain.export import save_encoder
from ovtrain.models.encoder import build_encoder
from ovtrain.schema.errors import CheckpointError, ConfigError, LabelError, MediaError
from ovtrain.schema.labels import CentroidStore
from tests.helpers.shards import write_shards
from tests.helpers.training import (
    computed,
    fit,
    metrics,
    small,
    world,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_next_start_goes_on(setup_folder, tmp_path, number):
    straight = small(setup_folder, tmp_path / "straight")
    fit(straight)
    config = small(setup_folder, tmp_path / "stopped")
    parts = build(config, world())
    trainer = Trainer(config, parts, world())
    run, calls = parts.step.run, []

    def run_and_signal(batch, step):
        calls.append(step)
        if step == 1:
            os.kill(os.getpid(), number)
        return run(batch, step)

    parts.step.run = run_and_signal  # type: ignore[method-assign]
    assert not trainer.fit()
    assert calls == [0, 1]
    assert checkpoint_folder(tmp_path / "stopped").name == "step-00000002"
    fit(config)
    assert computed(tmp_path / "stopped") == computed(tmp_path / "straight")


def test_signals_may_come_any_number_of_times():
    stop = StopRequest(world())
    assert not stop.requested()
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested()


def test_a_label_that_is_no_class_names_source_and_sample(setup_folder, tmp_path):
    parts = build(small(setup_folder, tmp_path), world())
    batch = next(parts.loader)
    (micro,) = batch.micro
    micro.labels[0] = 40
    with pytest.raises(LabelError) as caught:
        parts.step.run(batch, 0)
    text = str(caught.value)
    assert parts.loader.name_of(int(micro.source[0]), int(micro.key[0])) in text
    assert "source video" in text
    assert "label 40" in text
    assert "0 to 39" in text
    parts.loader.close()


def test_a_head_of_a_source_starts_from_its_centroids(setup_folder, tmp_path):
    config = small(setup_folder, tmp_path)
    width = build_encoder(config.model, 0).width
    centroids = np.random.default_rng(0).normal(size=(40, width)).astype(np.float32)
    CentroidStore(centroids, "teacher").write(tmp_path / "centroids")
    first, *rest = config.data.sources
    first = replace(first, centroids=str(tmp_path / "centroids"))
    config = replace(config, data=replace(config.data, sources=[first, *rest]))
    config = replace(config, heads={first.name: {"init": "centroids"}})
    parts = build(config, world())
    started, other = (h.head for h in parts.heads)
    cosines = torch.cosine_similarity(started.rows, torch.tensor(centroids))
    assert torch.allclose(cosines, torch.ones(40), atol=1e-6)
    assert other.config.init == "normal"
    parts.loader.close()


def test_samples_without_labels_are_named_and_counted(setup_folder, tmp_path, caplog):
    config = small(setup_folder, tmp_path, steps=2)
    parts = build(config, world())
    source = parts.loader.sources[0]
    assert source.labels is not None
    source.labels = replace(source.labels, offsets=np.zeros_like(source.labels.offsets))
    with caplog.at_level("WARNING"):
        Trainer(config, parts, world()).fit()
    counted = metrics(tmp_path)[-1]["unlabelled_samples"]
    assert counted == 2 * parts.loader.plan.counts[0]
    named = [r.getMessage() for r in caplog.records if "has no labels" in r.getMessage()]
    assert len(named) == min(counted, 10)
    assert all(text.startswith("source video: sample video-0") for text in named), named
    assert metrics(tmp_path)[-1]["loss/video"] == 0


def test_a_finished_run_started_again_does_nothing(setup_folder, tmp_path):
    config = small(setup_folder, tmp_path, steps=2)
    fit(config)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    fit(config)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_stage_two_starts_from_the_encoder_of_stage_one(setup_folder, tmp_path):
    fit(small(setup_folder, tmp_path / "one", steps=2))
    config = small(setup_folder, tmp_path / "two", init_from=str(tmp_path / "one"), seed=5)
    parts = build(config, world())
    parts.loader.close()
    assert config.run.seed == 5
    trained, _ = open_run(tmp_path / "one")
    for name, tensor in parts.encoder.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name])


def test_a_run_starts_from_an_encoder_in_the_public_format(setup_folder, tmp_path):
    public = build_encoder(small(setup_folder, tmp_path).model, seed=9)
    save_encoder(public, tmp_path / "public")
    config = small(setup_folder, tmp_path / "run", init_from=str(tmp_path / "public"), steps=1)
    parts = build(config, world())
    parts.loader.close()
    for name, tensor in parts.encoder.state_dict().items():
        assert torch.equal(tensor, public.state_dict()[name])
    other = replace(config, model=replace(config.model, rope_style="released"))
    with pytest.raises(CheckpointError, match=r"set model\.rope_style=rotary, or start"):
        build(other, world())


def test_stage_two_refuses_weights_that_would_mean_something_else(setup_folder, tmp_path):
    fit(small(setup_folder, tmp_path / "one", steps=1))
    begin = {"init_from": str(tmp_path / "one")}
    other = ("model.rope_style=released", "model.rope_theta=100")
    config = small(setup_folder, tmp_path / "two", *other, **begin)
    with pytest.raises(CheckpointError, match=r"set model.rope_style=rotary model.rope_theta=1"):
        build(config, world())


def test_labels_with_another_number_of_classes_cannot_resume(setup_folder, tmp_path):
    config = small(setup_folder, tmp_path, steps=2)
    fit(config)
    parts = build(replace(config, run=replace(config.run, steps=3)), world())
    parts.heads[0].head.classes = 41
    with pytest.raises(CheckpointError, match="head video has 40 classes; allowed: 41"):
        parts.checkpoints.resume()
    parts.loader.close()


def test_other_shards_under_the_same_path_cannot_resume(setup_folder, tmp_path):
    shutil.copytree(setup_folder, tmp_path, dirs_exist_ok=True)
    config = small(tmp_path, tmp_path / "run", steps=2)
    fit(config)
    write_shards(tmp_path / "image", "image", 24, frames=8, shards=3)
    with pytest.raises(CheckpointError, match="the shards of image are not those the checkpoint"):
        fit(replace(config, run=replace(config.run, log_every=5)))


def test_sources_without_any_labels_are_an_error(setup_folder, tmp_path):
    config = small(setup_folder, tmp_path)
    bare = [replace(source, labels="") for source in config.data.sources]
    with pytest.raises(ConfigError, match="no source has labels"):
        build(replace(config, data=replace(config.data, sources=bare)), world())


def test_a_source_without_labels_trains_no_head(setup_folder, tmp_path):
    config = small(setup_folder, tmp_path, steps=1)
    sources = [config.data.sources[0], replace(config.data.sources[1], labels="")]
    fit(replace(config, data=replace(config.data, sources=sources)))
    (row,) = computed(tmp_path)
    assert "loss/video" in row
    assert "loss/image" not in row


def test_a_backends_state_lies_where_it_says(setup_folder, tmp_path):
    config = small(setup_folder, tmp_path, steps=1)
    parts = build(config, world())
    parts.step.run(next(parts.loader), 0)
    parts.loader.close()
    backend = parts.step.backend
    assert {float(steps) for steps in backend.steps()} == {1.0}
    encoder = build_encoder(config.model, seed=9)
    other = PlainBackend(encoder, undivided(encoder), config.optim, make_mesh(world(), 1))
    for mine, its in zip(backend.held(), other.held(), strict=True):
        assert (mine.key, len(mine.values)) == (its.key, len(its.values))
        assert mine.values.any(), mine.key
        its.values.copy_(mine.values)
    for name, tensor in parts.encoder.state_dict().items():
        assert torch.equal(tensor, other.encoder.state_dict()[name])


def test_the_train_state_is_its_own_checkpoint():
    state = TrainState(
        3, {"video": 8}, {"codec": 5}, 2, {"cut short": 1}, 1, 4, 2, {"history": [1.0]}
    )
    assert all(vars(state).values())
    other = TrainState()
    other.restore(state.to_json())
    assert other == state


@pytest.fixture
def damaged(setup_folder: Path, tmp_path: Path) -> Path:
    """A set-up of its own in which two clips and a picture are damaged, each its way."""
    shutil.copytree(setup_folder, tmp_path, dirs_exist_ok=True)
    for kind, start, times in (("video", b"ftyp", 2), ("image", b"\xff\xd8\xff", 1)):
        tar = tmp_path / kind / f"{kind}-000001.tar"
        before, *pieces = tar.read_bytes().split(start)
        for number, piece in enumerate(pieces):
            whole = start + piece
            before += bytes(64) + whole[64:] if number < times else whole
        tar.write_bytes(before)
    return tmp_path


def quarantined(out: Path) -> list[str]:
    paths = sorted(out.glob("quarantine-*"))
    return [line for path in paths for line in path.read_text().splitlines()]


def test_bad_samples_are_counted_by_reason_and_once_however_often_a_run_resumes(damaged: Path):
    straight = small(damaged, damaged / "straight", steps=9)  # 36 of each: an epoch and a half
    fit(straight)
    counted = metrics(damaged / "straight")[-1]
    assert set(counted["bad_reasons"]) == {"does not decode", "not a readable picture"}
    assert sum(counted["bad_reasons"].values()) == counted["bad_samples"] >= 3
    assert sum(counted["views"].values()) == 72 - counted["bad_samples"]
    assert len(quarantined(damaged / "straight")) == counted["bad_samples"]

    config = small(damaged, damaged / "stopped", steps=9, checkpoint_every=4, log_every=3)
    trainer = Trainer(config, build(config, world()), world())
    run = trainer.parts.step.run

    def stop_behind_a_checkpoint(batch, step):
        if step == 7:
            raise RuntimeError("power cut")
        return run(batch, step)

    trainer.parts.step.run = stop_behind_a_checkpoint  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.fit()
    fit(config)
    assert metrics(damaged / "stopped")[-1]["bad_reasons"] == counted["bad_reasons"]
    assert quarantined(damaged / "stopped") == quarantined(damaged / "straight")


def test_a_row_of_bad_samples_of_one_source_stops_the_run_and_is_all_quarantined(damaged: Path):
    for tar in (damaged / "video").glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    config = small(damaged, damaged / "run", "data.max_bad_in_a_row=6", steps=9)
    with pytest.raises(
        MediaError, match=r"6 unreadable samples in a row.*this batch 2 index is wrong"
    ):
        fit(config)
    lines = quarantined(damaged / "run")
    assert sum("index is wrong" in line for line in lines) == 6
