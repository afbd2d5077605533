"""What a run ran in: ``environment.json``, and ``code.diff`` where the checkout is not its commit.

Names and versions, never secrets: variables are taken by an allow-list, and of those none whose
name speaks of a key, a token or a password.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

import ovtrain
from ovtrain.distributed.collectives import gather_objects
from ovtrain.distributed.context import World
from ovtrain.schema.atomic import atomic_open, write_json

NAME, DIFF = "environment.json", "code.diff"
MOST_DIFF = 2**20
"""Bytes; a longer difference is left out, since it is data rather than code."""
ALLOWED = re.compile(
    r"(NCCL|GLOO|OMP|MKL|CUDA|CUBLAS|TORCH|PYTORCH|TORCHELASTIC|OVTRAIN|TRITON|SLURM|SLURMD)_\w+"
    r"|(LOCAL_|GROUP_)?(RANK|WORLD_SIZE)|LOCAL_WORLD_SIZE|MASTER_(ADDR|PORT)"
    r"|PYTHONPATH|LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA_DEFAULT_ENV|WANDB_MODE"
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|JWT|COOKIE|PRIVATE", re.IGNORECASE)


def record_environment(out: Path, world: World) -> None:
    """Collective. Rank 0 writes what it runs in, and the host and device of every rank."""
    ranks = gather_objects({"host": platform.node(), "device": device_name(world)}, world.group)
    if not world.is_main:
        return
    code = write_code_diff(out)
    write_json(out / NAME, environment(world) | {"ranks": ranks, "code": code})


def device_name(world: World) -> str:
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    return "CPU"


def environment(world: World) -> dict[str, Any]:
    """Of this process; versions that there are none of are null."""
    return {
        "time": time.time(),
        "system": {
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "libc": "-".join(platform.libc_ver()),
        },
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "torch": torch_versions(world),
        "packages": packages(),
        "variables": variables(os.environ),
    }


def torch_versions(world: World) -> dict[str, Any]:
    cuda = world.device.type == "cuda"
    nccl: Any = torch.cuda.nccl.version() if cuda else None  # type: ignore[no-untyped-call]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "driver": driver(),
    }


def driver(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """NVIDIA's, as the kernel's module tells."""
    try:
        return path.read_text().splitlines()[0]
    except (OSError, IndexError):
        return None


def packages() -> dict[str, str]:
    """Versions of all that is installed beside ovtrain."""
    found = {dist.metadata["Name"]: dist.version for dist in distributions() if dist.metadata}
    return dict(sorted((name, version) for name, version in found.items() if name))


def variables(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in sorted(env.items())
        if ALLOWED.fullmatch(name) and not SECRET.search(name)
    }


def write_code_diff(out: Path) -> dict[str, Any]:
    """``code.diff`` against the commit, where there is one; what is known of the code's state:
    commit, bytes of the difference, whether it was written, files that git does not track.

    An installed package has no commit: {"commit": null}.
    """
    root = Path(ovtrain.__file__).parents[1]
    (out / DIFF).unlink(missing_ok=True)  # an earlier start's
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return {"commit": None}
    diff = _git(root, "diff", "--no-ext-diff", "HEAD") or b""
    untracked = (_git(root, "ls-files", "--others", "--exclude-standard") or b"").decode()
    written = 0 < len(diff) <= MOST_DIFF
    if written:
        with atomic_open(out / DIFF) as handle:
            handle.write(diff)
    return {
        "commit": commit.decode().strip(),
        "diff_bytes": len(diff),
        "diff": DIFF if written else None,
        "untracked": untracked.splitlines()[:100],
    }


def _git(root: Path, *words: str) -> bytes | None:
    """Its output; None where there is no git, or it refuses."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
