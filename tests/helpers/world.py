"""Real multi-process runs: n gloo ranks through torchrun, a free port, a timeout, the first
traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def torchrun(
    processes: int, *arguments: str, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """``torchrun --nproc-per-node processes arguments``; output is captured, nothing is checked."""
    return subprocess.run(
        torchrun_command(processes, *arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
        check=False,
    )


def train_command(config: str, processes: int) -> list[str]:
    """``ovtrain train`` as a user calls it."""
    return [sys.executable, "-m", "launch.cli", "train", config, "--nproc", str(processes)]


def torchrun_command(processes: int, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        *arguments,
    ]


def environment() -> dict[str, str]:
    """One thread per rank, so that sums are taken in one order."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
    }


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    """The output of a run that must have succeeded; fails with its last lines."""
    assert result.returncode == 0, "\n".join((result.stdout + result.stderr).splitlines()[-60:])
    return result.stdout + result.stderr
