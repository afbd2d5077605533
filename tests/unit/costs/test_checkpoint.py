"""The bytes of checkpoints are those of real ones, and so is their number."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.run_folder import checkpoint_bytes
from ovtrain.checkpoint import storage
from ovtrain.costs.checkpoint import most_at_once
from tests.helpers.training import fit, typed_config


@pytest.mark.parametrize("kind", ["adamw", "rowwise_adagrad"])
def test_a_real_checkpoint_has_the_predicted_bytes(setup_folder: Path, tmp_path: Path, kind: str):
    config = typed_config(setup_folder, backend="ddp", steps=1, out=str(tmp_path / "run"))
    config = replace(config, head=replace(config.head, optimizer=kind))
    fit(config)
    (step,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    found = sum(path.stat().st_size for path in step.glob("*.safetensors"))
    # Beyond the tensors: a header of some 100 bytes for each.
    assert 0 < found - checkpoint_bytes(config, [40, 23]) < 40_000


@pytest.mark.parametrize(
    ("steps", "every", "keep", "keep_every"),
    [
        (100, 10, 2, 0),
        (100, 10, 2, 20),
        (95, 10, 3, 25),
        (5, 10, 2, 0),
        (10, 10, 4, 10),
        (7, 2, 1, 3),
    ],
)
def test_so_many_checkpoints_lie_there_at_once(
    tmp_path: Path, steps: int, every: int, keep: int, keep_every: int
):
    """Against the deletions that a run really makes."""
    most = 0
    for step in sorted({*range(every, steps + 1, every), steps}):
        (tmp_path / storage.step_name(step)).mkdir()
        most = max(most, len(list(tmp_path.iterdir())))
        storage.prune(tmp_path, keep, step, keep_every)
    assert most_at_once(steps, every, keep, keep_every) == most
