"""A head and its optimizer through files, from two ranks to three: to the bit, and going on so."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ovtrain.checkpoint import storage
from ovtrain.checkpoint.state import HeadPart
from ovtrain.checkpoint.tensor_files import write_tensors
from ovtrain.config.head import HeadConfig
from ovtrain.config.optim import OptimConfig
from ovtrain.heads.class_sharded import ClassShardedHead
from ovtrain.optim.sparse_rows import SparseRows
from ovtrain.schema.atomic import write_json
from ovtrain.schema.errors import CheckpointError
from tests.helpers.training import world

CLASSES, WIDTH = 50, 16
STORAGE = {
    "adamw": {},
    "rowwise_adamw": {"rows": "bf16", "moments": "bf16"},
    "rowwise_adagrad": {"rows": "bf16"},
}


def parts(ranks: int, optimizer: str, width: int = WIDTH) -> list[HeadPart]:
    config = HeadConfig(optimizer=optimizer, sample_rate=0.3, **STORAGE[optimizer])
    found = []
    for rank in range(ranks):
        head = ClassShardedHead("v", CLASSES, width, config, world(rank, ranks), seed=1)
        rows = SparseRows(
            head.rows, config, OptimConfig(weight_decay=0.3), first_row=head.lo, seed=head.seed
        )
        found.append(HeadPart(head, rows))
    return found


def train(found: list[HeadPart], steps: range) -> None:
    for step in steps:
        labels = np.random.default_rng(step).integers(0, CLASSES, (3, 2)).astype(np.int32)
        gradient = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(step))
        for part in found:
            ids = torch.from_numpy(part.head.plan(step, [labels]).ids)
            part.optimizer.step(ids - part.head.lo, gradient[ids], 1e-2, step, torch.tensor(0.7))


def write(part: HeadPart, folder: Path) -> None:
    for name, tensors in part.files().items():
        write_tensors(folder / name, tensors)


def whole(found: list[HeadPart]) -> dict[str, torch.Tensor]:
    states = [part.optimizer.state() for part in found]
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


@pytest.mark.parametrize("optimizer", list(STORAGE))
def test_another_world_size_goes_on_to_the_bit(tmp_path: Path, optimizer: str):
    straight = parts(1, optimizer)
    train(straight, range(9))
    two = parts(2, optimizer)
    train(two, range(5))
    for part in two:
        write(part, tmp_path)
    write_json(tmp_path / storage.STATE, {"classes": {"v": CLASSES}})
    three = parts(3, optimizer)
    for part in three:
        part.load(tmp_path)
    assert whole(three)["owed"].any()
    train(three, range(5, 9))
    wanted = whole(straight)
    for name, tensor in whole(three).items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("other", ["rowwise_adagrad", "adamw"])
def test_the_state_of_another_optimizer_is_refused(tmp_path: Path, other: str):
    (saved,) = parts(1, "rowwise_adamw")
    write(saved, tmp_path)
    write_json(tmp_path / storage.STATE, {"classes": {"v": CLASSES}})
    (part,) = parts(1, other)
    with pytest.raises(CheckpointError, match="another optimizer or width"):
        part.load(tmp_path)
