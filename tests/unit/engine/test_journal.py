"""What a run's metrics.jsonl says of its starts, stops and faults, across resumptions."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from ovtrain.config.train import RunConfig, TrainConfig
from ovtrain.data.faults import TooManyBad
from ovtrain.engine.build import build
from ovtrain.engine.journal import Journal
from ovtrain.engine.trainer import Trainer
from ovtrain.observability.history import read_events, read_lines, read_rows
from tests.helpers.training import computed, fit, keep_signals, poison, small, world


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(run=RunConfig(out=str(tmp_path), steps=10))


def start(config: TrainConfig, step: int) -> Journal:
    journal = Journal(config, world())
    journal.open(step)
    journal.start(step, ["n2", "n2", "n1", "n1"], "1234-dirty")
    return journal


def test_starts_count_and_carry_the_config_where_it_changed(config: TrainConfig, tmp_path: Path):
    other = replace(config, run=replace(config.run, log_every=3))
    for each in (config, config, other):
        start(each, 4).close()
    rows = read_events(tmp_path / "metrics.jsonl")
    assert [row["attempt"] for row in rows] == [0, 1, 2]
    assert [row.get("config", {}).get("run", {}).get("log_every") for row in rows] == [10, None, 3]
    first = rows[0]
    assert (first["hosts"], first["code"], first["step"]) == (["n2", "n1"], "1234-dirty", 4)
    assert first["versions"].keys() == {"torch", "deepspeed", "ovtrain"}
    assert first["after"] is None


def test_a_start_says_how_the_attempt_before_ended(config, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    ends = [{"attempt": i, "kind": "failed", "why": f"rank {i}: boom"} for i in range(2)]
    (tmp_path / "logs").mkdir()
    text = "".join(json.dumps(end) + "\n" for end in ends)
    (tmp_path / "logs" / "attempts.jsonl").write_text(text + '{"torn')
    start(config, 0).close()
    (row,) = read_events(tmp_path / "metrics.jsonl")
    assert (row["after"], row["job"]) == (ends[1], "77")


def test_a_resumed_run_forgets_what_it_meets_again_and_nothing_else(config, tmp_path: Path):
    journal = start(config, 0)
    for step in (1, 2, 3):
        journal.write({"step": step, "loss": 1.0})
        journal.fault("spike", step, "")
    for kind in ("hung", "rank", "stopped"):
        journal.fault(kind, 4, "")
    journal.stop(3, "")
    journal.close()
    start(config, 2).close()
    path = tmp_path / "metrics.jsonl"
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    names = [row.get("kind", row["event"]) + str(row["step"]) for row in read_events(path)]
    stay = ["hung4", "rank4", "stopped4", "stop3"]
    assert names == ["start0", "spike1", "spike2", *stay, "start2"]


def test_other_ranks_write_nothing(config: TrainConfig, tmp_path: Path):
    journal = Journal(config, world(rank=1, size=2))
    journal.open(0)
    journal.start(0, ["n1"], None)
    journal.write({"step": 1})
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_run_goes_on_with_the_same_rows(setup_folder: Path, tmp_path: Path):
    straight = small(setup_folder, tmp_path / "straight", log_every=2, steps=6)
    fit(straight)
    stopped = replace(straight, run=replace(straight.run, out=str(tmp_path / "stopped")))
    with keep_signals():
        parts = build(stopped, world())
        trainer, run = Trainer(stopped, parts, world()), parts.step.run

        def terminated(batch, step):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return run(batch, step)

        parts.step.run = terminated
        assert not trainer.fit()
    fit(stopped)
    assert computed(tmp_path / "stopped") == computed(tmp_path / "straight")
    lines = list(read_lines(tmp_path / "stopped" / "metrics.jsonl"))
    shown = [(row.get("event", "row"), row["step"]) for row in lines]
    assert shown == [
        *(("start", 0), ("row", 2), ("stop", 3)),
        *(("start", 3), ("row", 4), ("row", 6)),
    ]


def test_an_error_that_ends_a_run_is_a_fault_on_record(setup_folder: Path, tmp_path: Path):
    config = small(setup_folder, tmp_path)
    with keep_signals():
        parts = build(config, world())

        def refuse(batch, step):
            raise TooManyBad("a source", "nothing can be read")

        parts.step.run = refuse
        with pytest.raises(TooManyBad):
            Trainer(config, parts, world()).fit()
    _, fault = read_events(tmp_path / "metrics.jsonl")
    assert (fault["kind"], fault["step"]) == ("stopped", 1)
    assert fault["message"] == "TooManyBad: a source: nothing can be read"


def test_a_skipped_step_is_a_fault_on_record(setup_folder: Path, tmp_path: Path):
    config = small(setup_folder, tmp_path, guards={"on_nonfinite": "skip"})
    with keep_signals():
        parts = build(config, world())
        _, name = poison(parts, "embedding", float("nan"), step=1, sample=3)
        Trainer(config, parts, world()).fit()
    _, fault = read_events(tmp_path / "metrics.jsonl")
    assert (fault["kind"], fault["step"]) == ("skipped", 2)
    assert name() in fault["message"]
