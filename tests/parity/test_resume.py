"""A run that is killed goes on as if nothing had happened; on another world size as well.

Bit-identical, not close: on the same number of processes nothing may differ, because all
randomness is a function of (seed, role, counter) and the restored state is the exact float32
state.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from ovtrain.checkpoint import storage
from ovtrain.checkpoint.restore import open_run
from tests.helpers.training import computed, fit, metrics, typed_config, write_config
from tests.helpers.world import environment, succeed, train_command
from tests.parity.conftest import UNEVEN, Runs


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, by file and name."""
    folder = storage.latest(out / "checkpoints")
    assert folder is not None
    storage.check(folder)
    return {
        f"{path.name}/{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in storage.read_tensors(path).items()
    }


def kill_at(config: str, out: Path, line: int, after: float = 0) -> None:
    """``ovtrain train`` on two processes; SIGKILL its group ``after`` seconds from when ``line``
    steps are logged."""
    job = subprocess.Popen(
        train_command(config, 2),
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    path = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and job.poll() is None:
            if path.exists() and path.read_bytes().count(b"\n") >= line:
                time.sleep(after)
                return
            time.sleep(0.02)
        pytest.fail(f"never reached step {line}, status {job.poll()}")
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def resume(config: str) -> None:
    """The same command again, to its end."""
    command = train_command(config, 2)
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    succeed(done)


@pytest.fixture(scope="module")
def killed(runs: Runs) -> Path:
    """The run of ``deepspeed-2``, killed at a random step and started again with the same
    command."""
    out = runs.folder / "killed"
    config = write_config(runs.folder, "killed", **(UNEVEN | {"checkpoint_every": 3}))
    step = random.SystemRandom().randrange(2, 17)
    print("killed at step", step)
    kill_at(config, out, step)
    assert len(metrics(out)) < 20
    resume(config)
    return out


def test_every_tensor_is_bit_identical(runs: Runs, killed: Path):
    straight, resumed = tensors(runs.out("deepspeed-2")), tensors(killed)
    assert straight.keys() == resumed.keys()
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []


def test_the_metrics_file_is_that_of_an_uninterrupted_run(runs: Runs, killed: Path):
    assert computed(killed) == computed(runs.out("deepspeed-2"))


def test_nothing_of_a_killed_save_is_left(killed: Path):
    names = [path.name for path in (killed / "checkpoints").iterdir()]
    assert sorted(names) == ["latest", "step-00000018", "step-00000020"]


def test_two_ranks_checkpoint_goes_on_on_one_process(runs: Runs):
    """Steps 19 and 20 on one process with the plain backend, from the step-18 state of two ZeRO
    ranks.

    Head files hold class ranges 0..20..40; one process reads both. 1e-5 as in test_worlds."""
    out = runs.folder / "alone"
    step = out / "checkpoints" / storage.step_name(18)
    shutil.copytree(runs.out("deepspeed-2") / "checkpoints" / step.name, step)
    (step.parent / storage.LATEST).write_text(step.name + "\n")
    settings = UNEVEN | {"backend": "ddp", "out": str(out)}
    parts = fit(typed_config(runs.folder, **settings))
    expected = metrics(runs.out("deepspeed-2"))[-2:]
    found = metrics(out)
    assert [row["step"] for row in found] == [19, 20]
    for row, wanted in zip(found, expected, strict=True):
        for column in ("loss", "grad_norm"):
            assert row[column] == pytest.approx(wanted[column], rel=1e-5)
        assert row["views"] == wanted["views"]
    assert sorted(step.glob("head-video-*")) == [
        step / storage.head_name("video", 0, 20),
        step / storage.head_name("video", 20, 40),
    ]
    assert [head.head.hi for head in parts.heads] == [40, 23]


def test_open_run_gives_the_trained_encoder(killed: Path):
    encoder, config = open_run(killed)
    assert (config.run.global_batch, config.model.preset) == (7, "nano")
    saved = tensors(killed)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, saved[f"{storage.ENCODER}/param/{name}"])


@pytest.mark.full
def test_a_run_killed_at_six_moments_ends_as_if_undisturbed(runs: Runs):
    """At any moment, not only between steps: some kills fall into start-up, some into a save."""
    out = runs.folder / "killed-often"
    config = write_config(runs.folder, out.name, **(UNEVEN | {"checkpoint_every": 1}))
    moments = random.Random(0)
    for _ in range(6):
        logged = len(metrics(out)) if (out / "metrics.jsonl").exists() else 0
        kill_at(config, out, min(logged + 2, 19), after=moments.uniform(0, 0.5))
    resume(config)
    straight, resumed = tensors(runs.out("deepspeed-2")), tensors(out)
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []
    assert computed(out) == computed(runs.out("deepspeed-2"))
