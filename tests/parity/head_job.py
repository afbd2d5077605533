"""Run by torchrun: every case of ``head_cases``; rank 0 writes the results.

torchrun -m tests.parity.head_job OUT.pt
"""

from __future__ import annotations

import sys

import torch

from ovtrain.distributed.context import start_world, stop_world
from tests.parity.head_cases import cases, sharded


def main(out: str) -> None:
    torch.set_num_threads(1)
    world = start_world(force_group=True)
    found = {name: sharded(case, world) for name, case in cases().items()}
    if world.is_main:
        torch.save(found, out)
    stop_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
