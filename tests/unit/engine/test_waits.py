"""From the embeddings on, a step never waits for a device: not for losses, norms, the gate, or
either optimizer. (The encoder's reference attention, on CPUs alone, asks for lengths.) ZeRO's:
tests/parity/test_guards.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ovtrain.engine.build import build
from tests.helpers.training import outside_the_encoder, typed_config, world


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_a_step_never_waits_for_a_device(setup_folder: Path, tmp_path: Path, micro_batch: int):
    settings: dict[str, Any] = {"backend": "ddp", "steps": 2, "micro_batch": micro_batch}
    parts = build(typed_config(setup_folder, out=str(tmp_path), **settings), world())
    watched = outside_the_encoder(parts)
    for step in range(2):
        batch = next(parts.loader)
        known = [replace(micro, longest=micro.max_seqlen) for micro in batch.micro]  # on the host
        parts.step.run(replace(batch, micro=known), step)
    parts.loader.close()
    assert watched.launches > 100
    assert watched.waits == []


def test_a_wait_would_be_seen(setup_folder: Path, tmp_path: Path):
    config = typed_config(setup_folder, backend="ddp", steps=1, out=str(tmp_path))
    parts = build(config, world())
    watched, judge = outside_the_encoder(parts), parts.step.gate.judge

    def asking(norm: torch.Tensor) -> torch.Tensor:
        assert norm.item() > 0
        return judge(norm)

    parts.step.gate.judge = asking  # type: ignore[method-assign]
    parts.step.run(next(parts.loader), 0)
    parts.loader.close()
    assert watched.waits == ["_local_scalar_dense"]
