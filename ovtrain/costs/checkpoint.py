"""Checkpoints: bytes on disk, all ranks together; how many of them a run keeps at once; time to
write one, and how long the training loop waits.

Each rank copies its part to host memory, which the loop waits for, and a thread writes it. A save
in the foreground makes the loop wait for the disk instead. Left out of the bytes: file headers,
state and manifest, kilobytes to a megabyte each.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from ovtrain.costs import head

ENCODER_BYTES = 12
"""Of each parameter: itself and its two AdamW moments, all fp32 whatever the run's precision."""

HOST_GBS = 12.0
"""Measured on a CPU: 1,412 MiB in 117 ms (``benchmarks/results/checkpoints-2-cores.txt``). A PCIe
link of the fourth generation has about twice that; no GPU was measured."""


@dataclass(frozen=True)
class Save:
    """bytes: on disk, of all ranks; write_s: until they are there; stall_s: of the loop."""

    bytes: int
    write_s: float
    stall_s: float


def save(size: int, ranks: int, disk_gbs: float, *, background: bool) -> Save:
    """``size``: bytes; ``disk_gbs``: of all nodes."""
    write = size / (disk_gbs * 1e9)
    copy = size / ranks / (HOST_GBS * 1e9)
    return Save(size, write, copy if background else write)


def encoder_bytes(parameters: int) -> int:
    return ENCODER_BYTES * parameters


def head_bytes(
    classes: int, width: int, rows: str = "fp32", optimizer: str = "adamw", moments: str = "fp32"
) -> int:
    """Class rows as they are stored, and their optimizer's state."""
    return head.weight_bytes(classes, width, 1, rows) + head.optimizer_bytes(
        classes, width, 1, optimizer, moments
    )


def most_at_once(steps: int, every: int, keep: int, keep_every: int = 0) -> int:
    """Most checkpoints that lie on disk together in a run of ``steps`` that saves ``every`` so many
    and at its end: the last ``keep``, those of every ``keep_every``-th step (0: none), and the one
    being written, before which none is deleted."""
    saves = -(-steps // every)
    older = max(saves - keep - 1, 0) * every
    return min(keep + 1, saves) + (older // lcm(every, keep_every) if keep_every else 0)
