"""Checkpoints: bytes, time to write, how long the training loop waits.

    encoder   12 bytes a parameter: weights and both moments in float32
    heads     rows, moments, 12 bytes a row (``ovtrain.costs.head``)

Each rank copies its part to host memory, which the loop waits for, and a thread writes it. A save
in the foreground makes the loop wait for the disk instead.
"""

from __future__ import annotations

from dataclasses import dataclass

ENCODER = 12
HOST_GBS = 12.0
"""Measured on a CPU: 1,412 MiB in 117 ms (``benchmarks/results/checkpoints-2-cores.txt``). A PCIe
link of the fourth generation has about twice that; no GPU was measured."""


@dataclass(frozen=True)
class Save:
    """bytes: on disk, of all ranks; write_s: until they are there; stall_s: of the loop."""

    bytes: int
    write_s: float
    stall_s: float


def save(
    parameters: int, head_bytes: int, ranks: int, disk_gbs: float, *, background: bool
) -> Save:
    """``head_bytes``: rows and state of all heads and ranks; ``disk_gbs``: of all nodes."""
    size = ENCODER * parameters + head_bytes
    write = size / (disk_gbs * 1e9)
    copy = size / ranks / (HOST_GBS * 1e9)
    return Save(size, write, copy if background else write)
