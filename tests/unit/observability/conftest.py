"""A real run that was killed twice, for what reads runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.training import write_config, write_setup
from tests.helpers.world import environment

RUN = """
import json, os, signal, sys
from pathlib import Path
from ovtrain.config.load import load
from ovtrain.config.train import TrainConfig
from ovtrain.engine.build import build
from ovtrain.engine.trainer import Trainer
from tests.helpers.training import world
config = load(TrainConfig, sys.argv[1])
Path(config.run.out, "logs").mkdir(parents=True)
def train(last):
    parts = build(config, world())
    run = parts.step.run
    def killed(batch, step):
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(batch, step)
    parts.step.run = killed
    Trainer(config, parts, world()).fit()
for last in (9, 13, None):
    child = os.fork()  # what is imported once serves three starts
    if not child:
        train(last)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status)
    end = {"attempt": 0, "kind": "failed", "why": f"ended with <{status}>", "rank": 0, "node": "n1"}
    with open(config.run.out + "/logs/attempts.jsonl", "a") as ends:  # as a launcher would
        print(json.dumps(end), file=ends)
"""


@pytest.fixture(scope="package")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 steps; killed in step 10 and, after going on from step 8, in step 14."""
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("sinks")
    write_setup(folder)
    sinks = {"wandb": "offline", "wandb_project": "a-project", "tensorboard": True}
    how = {"backend": "ddp", "steps": 14, "checkpoint_every": 4, "background_saves": False}
    config = write_config(folder, "run", **how, **sinks)
    command = [sys.executable, "-c", RUN, config]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.stdout.split()[-3:] == ["-9", "-9", "0"], done.stderr
    return folder / "run"
