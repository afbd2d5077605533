"""Ranks, groups, devices and seeds of a process; one process is a world of its own.

Seeds are a function of role (and of a counter), never of the process, so that nothing depends on
the world size.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed as dist

from ovtrain.config.step_plan import split
from ovtrain.schema.isolated import die_with


@dataclass(frozen=True)
class World:
    """This process's place. ``group`` None means one process without torch.distributed."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def slice_of(self, count: int) -> range:
        """This rank's near-even contiguous part of ``count`` items."""
        return split(count, self.rank, self.size)


def die_with_launcher() -> None:
    """Have the kernel kill this process when its launcher dies (Linux).

    torchrun gives each rank a session of its own, so a SIGKILL of the launcher's process group
    leaves the ranks alive, training into a directory that the restarted run has taken over.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()
    if not _is_python(launcher):
        sys.exit("error: the launcher of this rank has ended")  # and something else adopted us
    die_with(launcher)


def _is_python(process: int) -> bool:
    """As torchrun is. True where the system does not say."""
    if not os.path.exists("/proc/self/exe"):
        return True
    try:
        return "python" in os.path.basename(os.readlink(f"/proc/{process}/exe"))
    except OSError:  # gone, or another user's
        return False


LEAST_S = 1800
"""torch's own limit of a collective on GPUs is 10 minutes, on CPUs 30."""
_timeout = timedelta(seconds=LEAST_S)


def start_world(*, force_group: bool = False, timeout_s: float = 0) -> World:
    """Join the job that torchrun described in the environment (NCCL for tensors on GPUs, gloo for
    those on CPUs).

    ``force_group`` makes a process group even for one process (DeepSpeed wants one). A collective
    fails after ``timeout_s`` and some minutes, but not before half an hour: whoever ends hung ranks
    earlier, and names them, must have had the time.
    """
    global _timeout
    _timeout = timedelta(seconds=max(LEAST_S, timeout_s + 300))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    # A task that was given one GPU of its own sees that one alone, whatever its place on the node.
    seen = local_rank % torch.cuda.device_count() if cuda else 0
    device = torch.device("cuda", seen) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if (size > 1 or force_group) and not dist.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0" if size == 1 else "29500")
        os.environ.setdefault("RANK", str(rank))
        os.environ.setdefault("WORLD_SIZE", str(size))
        # Labels travel between hosts' memories: see engine/step.py.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_timeout)
    return World(
        rank, local_rank, size, device, dist.group.WORLD if dist.is_initialized() else None
    )


def group_timeout() -> timedelta:
    """Of the collectives of a group made beside the world's."""
    return _timeout


def side_group(world: World) -> dist.ProcessGroup | None:
    """Collective: all ranks once more, on the host, for a thread of its own beside the training
    loop."""
    if world.group is None:
        return None
    made: Any = getattr(dist, "new_group")(backend="gloo", timeout=_timeout)  # noqa: B009 (partly typed)
    return made


def stop_world() -> None:
    """Leave the job; safe to call when none was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def seed_for(seed: int, role: str, *counters: int) -> int:
    """A 63-bit seed that depends on (seed, role, counters) only."""
    text = ":".join([str(seed), role, *map(str, counters)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
