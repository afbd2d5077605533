"""A training run on the lab, and what is asked of it while it runs."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from launch import cli
from launch.attempts import read_attempts
from ovtrain.config.load import data_folder, to_yaml
from ovtrain.config.site import SiteConfig
from tests.helpers.training import typed_config
from tests.slurm.lab import ENDED, Lab


class SlurmRun:
    """Two nodes with two ranks each, unless ``site`` says otherwise; tiny, four steps a second."""

    def __init__(
        self, lab: Lab, capsys: pytest.CaptureFixture[str], setup: Path, out: Path, **run: Any
    ) -> None:
        self.lab, self.capsys, self.out = lab, capsys, out
        settings = {"steps": 60, "checkpoint_every": 20, "log_every": 5, "out": str(out)} | run
        self.config = out.with_suffix(".yaml")
        self.config.write_text(to_yaml(typed_config(setup, **settings)))

    def submit(self, **site: Any) -> str:
        """With ``ovtrain launch slurm``; the job's id."""
        values = {"nodes": 2, "gpus_per_node": 0, "ranks_per_node": 2, "cpus_per_gpu": 1}
        values |= {"check": False} | site
        values["env"] = {"OMP_NUM_THREADS": "1"} | values.get("env", {})
        path = self.config.with_suffix(".site.yaml")
        path.write_text(OmegaConf.to_yaml(OmegaConf.structured(SiteConfig(**values))))
        assert cli.run(["launch", "slurm", str(self.config), "--site", str(path)]) == 0
        (self.job,) = re.findall(r"^job (\d+) ", self.capsys.readouterr().out, re.MULTILINE)
        return self.job

    def submit_by_hand(self) -> str:
        """The script itself, without a site."""
        variables = {"OVTRAIN_PYTHON": sys.executable, "OVTRAIN_NPROC": "2", "OVTRAIN_CHECK": "0"}
        log = f"--output={self.out}/logs/slurm-%j.out"
        script = str(data_folder("slurm") / "pretrain.sbatch")
        words = ("--nodes=2", log, script, str(self.config))
        self.job = self.lab.submit(*words, OMP_NUM_THREADS="1", **variables)
        return self.job

    @property
    def log(self) -> str:
        path = self.out / "logs" / f"slurm-{self.job}.out"
        return path.read_text() if path.exists() else ""

    def wait_for(self, text: str, seconds: float = 180, times: int = 1) -> float:
        """Seconds until the log holds ``text`` so often."""
        began = time.monotonic()
        while self.log.count(text) < times:
            assert time.monotonic() - began < seconds, f"no {text!r} in {self._told()}"
            assert self.lab.state(self.job) not in ENDED, self._told()
            time.sleep(0.1)
        return time.monotonic() - began

    def finish(self, seconds: float = 300) -> list[dict[str, Any]]:
        """Wait until it has trained to the end; its attempts."""
        assert self.lab.wait_end(self.job, seconds) == "COMPLETED", self._told()
        return read_attempts(self.out)

    def _told(self) -> str:
        return f"{self.log[-6000:]}\n{self.lab.call('squeue')}"

    def kill(self, rank: int) -> None:
        os.kill(self._process(rank), signal.SIGKILL)

    def _process(self, rank: int) -> int:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                env = (folder / "environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            ours = b"ovtrain.train" in words and str(self.out / "launch.yaml").encode() in words
            if ours and f"RANK={rank}".encode() in env:
                return int(folder.name)
        raise AssertionError(f"no process of rank {rank}")

    def weights(self) -> dict[str, str]:
        """{file: hash of its bytes} of the newest checkpoint, but for its own description."""
        step = (self.out / "checkpoints" / "latest").read_text().strip()
        folder = self.out / "checkpoints" / step
        return {
            path.name: sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.glob("*.safetensors"))
        }
