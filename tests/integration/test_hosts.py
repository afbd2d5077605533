"""Real training on two hosts of one rank each, which a stand-in for ssh runs on this machine."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.hosts import Hosts, run_on_hosts
from ovtrain.checkpoint import storage
from ovtrain.checkpoint.restore import checkpoint_folder
from tests.helpers.training import computed, write_config
from tests.helpers.world import ROOT, torchrun_command

pytestmark = pytest.mark.full


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch) -> Hosts:
    for name, value in {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}.items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "ssh"
    script.write_text('#!/bin/sh\nshift\nexec bash -c "$1"\n')
    script.chmod(0o755)
    env = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}
    return Hosts(["n1", "n2"], 1, [str(script)], address="127.0.0.1", env=env)


def nodes(config: str) -> Callable[[int, str], list[str]]:
    """Each host's ranks, through torchrun."""

    def command(number: int, master: str) -> list[str]:
        address, port = master.split(":")
        place = ["--nnodes=2", f"--node-rank={number}", f"--master-addr={address}"]
        call = torchrun_command(1, *place, f"--master-port={port}", "-m", "ovtrain.train", config)
        return [word for word in call if word != "--standalone"]

    return command


def once_training(out: Path, then: Callable[[], None]) -> None:
    """Call ``then`` in a thread as soon as the run has logged a step."""

    def wait() -> None:
        path, deadline = out / "metrics.jsonl", time.monotonic() + 120
        while time.monotonic() < deadline and not (path.exists() and path.read_bytes()):
            time.sleep(0.05)
        then()

    threading.Thread(target=wait, daemon=True).start()


def ranks_of(config: str) -> list[int]:
    """Training processes of ``config``."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if config.encode() in words and b"ovtrain.train" in words[:5]:
            found.append(int(folder.name))
    return found


def test_training_on_two_hosts_is_the_same_as_on_one(hosts, setup_folder, tmp_path):
    one = write_config(setup_folder, "alone", backend="ddp", steps=6, out=str(tmp_path / "alone"))
    alone = Hosts(["n1"], 2, hosts.ssh, env=hosts.env)

    def two_ranks(_: int, master: str) -> list[str]:
        return torchrun_command(2, "-m", "ovtrain.train", one)

    assert run_on_hosts(alone, two_ranks, tmp_path / "alone") == 0
    both = write_config(setup_folder, "both", backend="ddp", steps=6, out=str(tmp_path / "both"))
    assert run_on_hosts(hosts, nodes(both), tmp_path / "both") == 0
    assert computed(tmp_path / "both") == computed(tmp_path / "alone")
    log = (tmp_path / "both" / "logs" / "launch.log").read_text()
    assert "[n1] " in log


def test_a_killed_rank_ends_all_and_a_restart_goes_on(hosts, setup_folder, tmp_path, capsys):
    out, begin = tmp_path / "run", time.monotonic()
    run = {"backend": "ddp", "steps": 40, "checkpoint_every": 5, "out": str(out)}
    config, killed = write_config(setup_folder, "killed", **run), list[float]()

    def kill() -> None:
        while not (out / "checkpoints" / "latest").exists():
            time.sleep(0.05)
        os.kill(max(ranks_of(config)), signal.SIGKILL)
        killed.append(time.monotonic())

    once_training(out, kill)
    assert run_on_hosts(hosts, nodes(config), out, restarts=1) == 0
    shown = capsys.readouterr().err
    assert "a rank was ended by signal 9 (first failing rank: " in shown
    assert "starting again; restarts left after this one: 0" in shown
    assert "resumed from" in shown
    assert computed(out)[-1]["step"] == 40
    assert killed[0] > begin
    assert ranks_of(config) == []


def test_one_signal_saves_all_hosts(hosts, setup_folder, tmp_path):
    out = tmp_path / "run"
    run = {"backend": "ddp", "steps": 5000, "checkpoint_every": 10_000, "out": str(out)}
    config = write_config(setup_folder, "signalled", **run)
    once_training(out, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run_on_hosts(hosts, nodes(config), out) == 75
    saved = storage.read_state(checkpoint_folder(out))["step"]
    assert 0 < saved < 5000
    assert computed(out)[-1]["step"] == saved
    assert ranks_of(config) == []
