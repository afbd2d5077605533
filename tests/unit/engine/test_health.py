"""What watches a run, in the run: spikes, hangs, garbage. Each part alone: its own tests."""

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ovtrain.config.guards import GuardConfig
from ovtrain.config.train import RunConfig, TrainConfig
from ovtrain.engine.health import Health, LossRise
from ovtrain.engine.state import TrainState
from ovtrain.observability.history import read_events
from tests.helpers.training import fit, metrics, typed_config, world, write_config
from tests.helpers.world import environment


def health(out: Path, faults: list[tuple[str, int, str]] | None = None, **guards) -> Health:
    """``faults`` gets what the journal would."""

    def fault(kind: str, step: int, message: str) -> None:
        if faults is not None:
            faults.append((kind, step, message))

    run = RunConfig(out=str(out), steps=1)
    return Health(TrainConfig(run=run, guards=replace(GuardConfig(), **guards)), world(), fault)


QUIET = [(step, 2.0 - step / 100 + (step % 3) / 50) for step in range(60)]
RISEN = [(step, 4.0) for step in range(60, 75)]


def test_a_rise_stops_the_run_where_it_is_to(tmp_path: Path, caplog):
    watched, state = health(tmp_path, on_spike="stop"), TrainState()
    watched.losses(state, QUIET)
    with caplog.at_level("WARNING"), pytest.raises(LossRise, match=r"stays high.*latest"):
        watched.losses(state, RISEN)
    assert "step 60: loss 4.0000 is a spike" in caplog.text
    watched.close()


@pytest.mark.parametrize(("mode", "told"), [("warn", 2), ("off", 0)])
def test_else_it_is_told_of_or_not(tmp_path: Path, caplog, mode: str, told: int):
    faults: list[tuple[str, int, str]] = []
    watched = health(tmp_path, faults, on_spike=mode)
    with caplog.at_level("WARNING"):
        watched.losses(TrainState(), QUIET + RISEN)
    assert len(caplog.records) == told
    assert [message for _, _, message in faults] == [r.getMessage() for r in caplog.records]
    assert [(kind, step) for kind, step, _ in faults] == [("spike", 60), ("rise", 69)][:told]
    watched.close()


def test_what_was_seen_is_saved_and_goes_on(tmp_path: Path, caplog):
    watched, state = health(tmp_path), TrainState()
    watched.losses(state, QUIET)
    watched.close()
    saved, later = TrainState(), health(tmp_path)
    saved.restore(json.loads(json.dumps(state.to_json())))
    later.begin(saved)
    with caplog.at_level("WARNING"):
        later.losses(saved, RISEN[:1])
    assert "step 60" in caplog.text
    later.close()


def test_automatic_garbage_collection_is_back_after_a_run(setup_folder: Path, tmp_path: Path):
    settings = {"backend": "ddp", "steps": 2, "out": str(tmp_path / "run")}
    fit(typed_config(setup_folder, "guards.gc_every=1", **settings))
    assert gc.isenabled()
    row = metrics(tmp_path / "run")[-1]
    for name in ("step_ms", "comm_ms", "rank_ms_max", "slowest_rank", "save_stall_ms"):
        assert name in row


HANG = """
import sys, time
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.engine.build import build
from ovtrain.engine.trainer import Trainer
from tests.helpers.training import world
config = load(TrainConfig, sys.argv[1])
parts = build(config, world())
trainer, run = Trainer(config, parts, world()), parts.step.run
def hang_in_the_third(batch, step):
    if step == 2:
        time.sleep(60)
    return run(batch, step)
parts.step.run = hang_in_the_third
trainer.fit()
"""


def test_a_hung_step_leaves_stacks_and_a_status_that_asks_for_another_start(
    setup_folder: Path, tmp_path: Path
):
    guards = {"step_timeout_s": 0.7}
    out = {"out": str(tmp_path / "run"), "backend": "ddp", "guards": guards}
    config = write_config(setup_folder, "hung", **out)
    command = [sys.executable, "-c", HANG, config]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=60, check=False)
    assert done.returncode == 75, done.stderr
    stacks = (tmp_path / "run" / "logs" / "stacks-00000.txt").read_text()
    assert "step 3 began" in stacks
    assert "hang_in_the_third" in stacks
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2]
    _, hung = read_events(tmp_path / "run" / "metrics.jsonl")
    assert (hung["event"], hung["kind"], hung["step"]) == ("fault", "hung", 3)
    assert "step 3 takes longer than 0.7 s" in hung["message"]
