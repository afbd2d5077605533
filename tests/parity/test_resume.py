"""A run that is killed goes on as if nothing had happened; on another world size as well.

Bit-identical, not close: on the same number of processes nothing may differ, because all
randomness is a function of (seed, role, counter) and the restored state is the exact float32
state.
"""

import json
import os
import random
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ovtrain.checkpoint import storage
from ovtrain.checkpoint.encoder_shards import EncoderReader
from ovtrain.checkpoint.restore import checkpoint_folder, open_run
from ovtrain.checkpoint.tensor_files import read_tensors
from ovtrain.heads.reshard import file_name
from ovtrain.observability.history import read_events, read_lines
from tests.helpers.training import (
    begin_at,
    computed,
    fit,
    logged,
    metrics,
    typed_config,
    write_config,
)
from tests.helpers.world import environment, succeed, train_command
from tests.parity.conftest import CONTINUED, UNEVEN, Runs
from tests.parity.gradients import RESTORED


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, by file and name."""
    folder = checkpoint_folder(out)
    return {
        f"{path.name}/{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in read_tensors(path).items()
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
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and job.poll() is None:
            if logged(out) >= line:
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
    events = read_events(killed / "metrics.jsonl")  # faults as well, where a rank was slow
    first, again = (row for row in events if row["event"] == "start")
    assert (first["step"], first["attempt"]) == (0, 0)
    assert (again["step"], again["attempt"]) == (resumed_at(killed), 1)
    assert first["config"]["run"]["out"] == str(killed)
    assert "config" not in again
    assert len(first["hosts"]) == 1
    assert first["world_size"] == 2


def resumed_at(out: Path) -> int:
    """The last step before the second start, by the order of the lines."""
    lines = list(read_lines(out / "metrics.jsonl"))
    second = [i for i, row in enumerate(lines) if row.get("event") == "start"][1]
    return max([0, *(row["step"] for row in lines[:second] if "event" not in row)])


def test_nothing_of_a_killed_save_is_left(killed: Path):
    names = [path.name for path in (killed / "checkpoints").iterdir()]
    assert sorted(names) == ["latest", "step-00000018", "step-00000020"]


def assert_last_two_steps(found: Path, expected: Path):
    """Steps 19 and 20 of a run that began at step 18. 1e-5 as in test_worlds."""
    rows = metrics(found)
    assert [row["step"] for row in rows] == [19, 20]
    for row, wanted in zip(rows, metrics(expected)[-2:], strict=True):
        for column in ("loss", "grad_norm"):
            assert row[column] == pytest.approx(wanted[column], rel=1e-5)
        assert row["views"] == wanted["views"]


@pytest.mark.parametrize("name", ["deepspeed-2", "zero3-2", "tp2-zero2-4-sequence"])
def test_several_ranks_checkpoint_goes_on_on_one_process(runs: Runs, name: str):
    """Steps 19 and 20 on one process with the plain backend, from the step-18 state of several.

    Head files hold class ranges; one process reads them all."""
    out = runs.folder / f"alone-after-{name}"
    begin_at(out, runs.out(name) / "checkpoints" / storage.step_name(18))
    parts = fit(typed_config(runs.folder, **(UNEVEN | {"backend": "ddp", "out": str(out)})))
    assert_last_two_steps(out, runs.out(name))
    step = out / "checkpoints" / storage.step_name(18)
    edges = range(0, 41, 10 if "-4-" in name else 20)
    assert sorted(step.glob("head-video-*")) == [
        step / file_name("video", *edge) for edge in pairwise(edges)
    ]
    assert [head.head.hi for head in parts.heads] == [40, 23]


LATER = {name: begin for named in CONTINUED.values() for name, (begin, _) in named.items()}


@pytest.mark.parametrize("name", LATER)
def test_a_checkpoint_goes_on_under_another_stage_and_number_of_processes(runs: Runs, name: str):
    """From stage 1 to 3, 3 to 2 and 3 to 1; from one process to two, from two to three and four."""
    assert_last_two_steps(runs.out(name), runs.out(LATER[name]))


@pytest.mark.parametrize("name", LATER)
def test_its_ranks_begin_with_the_very_weights_that_were_saved(runs: Runs, name: str):
    """So what it would export is what the other layout would."""
    assert json.loads((runs.out(name) / RESTORED).read_text()) == []


@pytest.mark.parametrize("name", LATER)
def test_it_meets_the_same_samples_in_the_same_order_and_draws_the_same_rows(runs: Runs, name: str):
    found, wanted = trace(runs.out(name)), trace(runs.out(LATER[name]))
    assert len(wanted) == 20
    assert found == wanted[-2:]
    for kind in ("samples/video", "samples/image", "rows/video", "rows/image"):
        assert found[0][kind] != found[1][kind]


def trace(out: Path) -> list[dict[str, list[int]]]:
    return json.loads((out / "trace.json").read_text())


def test_stage_3_resumes_bit_identical(runs: Runs):
    straight, resumed = tensors(runs.out("zero3-2")), tensors(runs.out("zero3-after-zero3"))
    assert straight.keys() == resumed.keys()
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []


def test_open_run_gives_the_trained_encoder(killed: Path):
    encoder, config = open_run(killed)
    assert (config.run.global_batch, config.model.preset) == (7, "nano")
    reader = EncoderReader(checkpoint_folder(killed))
    assert reader.steps == 20
    held = encoder.state_dict()
    read = reader.whole("param", {name: tensor.shape for name, tensor in held.items()})
    assert [name for name in held if not torch.equal(held[name], read[name])] == []


@pytest.mark.full
def test_a_run_killed_at_six_moments_ends_as_if_undisturbed(runs: Runs):
    """At any moment, not only between steps: some kills fall into start-up, some into a save."""
    out = runs.folder / "killed-often"
    config = write_config(runs.folder, out.name, **(UNEVEN | {"checkpoint_every": 1}))
    moments = random.Random(0)
    for _ in range(6):
        kill_at(config, out, min(logged(out) + 2, 19), after=moments.uniform(0, 0.5))
    resume(config)
    straight, resumed = tensors(runs.out("deepspeed-2")), tensors(out)
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []
    assert computed(out) == computed(runs.out("deepspeed-2"))
