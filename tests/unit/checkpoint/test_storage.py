"""Step directories: whole or absent, checked before use, readable on any world size."""

import json
from pathlib import Path

import pytest
import torch

from ovtrain.checkpoint import storage
from ovtrain.checkpoint.manager import Checkpoints
from ovtrain.checkpoint.restore import checkpoint_folder, open_run, restore_encoder
from ovtrain.config.model import ModelConfig
from ovtrain.distributed.context import World
from ovtrain.models.encoder import build_encoder
from ovtrain.schema.errors import CheckpointError
from tests.helpers.training import world


class Counter:
    """A part with one number."""

    def __init__(self, fail: bool = False) -> None:
        self.value, self.fail = 0.0, fail

    def save(self, folder: Path, world: World) -> None:
        if self.fail:
            raise OSError("disk full")
        storage.write_tensors(folder / "counter.safetensors", {"v": torch.tensor(self.value)})

    def load(self, folder: Path) -> None:
        self.value = storage.read_tensors(folder / "counter.safetensors")["v"].item()


def manager(folder: Path, part: Counter, *, every: int = 5, keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, {"counter": part}, world(), every=every, keep=keep)


def save(folder: Path, *steps: int) -> Path:
    part = Counter()
    checkpoints = manager(folder, part)
    for step in steps:
        part.value = float(step)
        checkpoints.save({"step": step})
    found = storage.latest(folder)
    assert found is not None
    return found


def test_the_newest_state_comes_back(tmp_path: Path):
    save(tmp_path, 5, 10)
    part = Counter()
    state = manager(tmp_path, part).resume()
    assert state == {"step": 10, "world_size": 1}
    assert part.value == 10


def test_a_fresh_folder_has_nothing_to_resume(tmp_path: Path):
    assert manager(tmp_path / "none", Counter()).resume() is None


def test_only_the_newest_are_kept(tmp_path: Path):
    save(tmp_path, 5, 10, 15, 20)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["latest", "step-00000015", "step-00000020"]


def test_a_run_set_back_to_an_older_step_loses_nothing_it_names(tmp_path: Path):
    save(tmp_path, 5, 10, 15, 20)
    (tmp_path / storage.LATEST).write_text("step-00000015\n")
    assert save(tmp_path, 16).name == "step-00000016"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["latest", "step-00000015", "step-00000016", "step-00000020"]
    assert save(tmp_path, 20, 25).name == "step-00000025"
    assert not (tmp_path / "step-00000016").exists()


def test_saves_are_due_every_so_many_steps_and_at_the_end_but_not_twice(tmp_path: Path):
    checkpoints = manager(tmp_path, Counter())
    assert [s for s in range(1, 12) if checkpoints.due(s, final=False)] == [5, 10]
    checkpoints.save({"step": 10})
    assert not checkpoints.due(10, final=True)
    assert checkpoints.due(11, final=True)


def test_a_failed_save_is_raised_and_the_older_one_stays_current(tmp_path: Path):
    save(tmp_path, 5)
    with pytest.raises(OSError, match="disk full"):
        manager(tmp_path, Counter(fail=True)).save({"step": 10})
    found = storage.latest(tmp_path)
    assert found is not None
    assert found.name == "step-00000005"
    save(tmp_path, 15)
    assert not list(tmp_path.glob(".step-*"))  # what the failed one left is gone


def test_the_same_step_may_be_saved_again(tmp_path: Path):
    assert save(tmp_path, 5, 5).name == "step-00000005"


@pytest.mark.parametrize("kind", ["missing", "cut", "changed"])
def test_damage_is_found_before_use_and_named(tmp_path: Path, kind: str):
    path = save(tmp_path, 5) / "counter.safetensors"
    data = path.read_bytes()
    path.unlink()
    if kind != "missing":
        path.write_bytes(data[:-1] if kind == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    fault = "is missing" if kind == "missing" else "is damaged"
    with pytest.raises(CheckpointError, match=f"counter.safetensors {fault}; delete this dir"):
        manager(tmp_path, Counter()).resume()


def test_a_directory_without_manifest_is_refused(tmp_path: Path):
    (save(tmp_path, 5) / storage.MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json: unreadable"):
        manager(tmp_path, Counter()).resume()


def test_a_pointer_to_nothing_is_refused(tmp_path: Path):
    (tmp_path / storage.LATEST).write_text("step-00000099\n")
    with pytest.raises(CheckpointError, match="names step-00000099, which is not here"):
        storage.latest(tmp_path)


def test_damaged_tensors_are_a_typed_error(tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: unreadable"):
        storage.read_tensors(tmp_path / "a.safetensors")


def test_an_encoder_comes_back_and_another_size_is_refused(tmp_path: Path):
    encoder = build_encoder(ModelConfig(preset="tiny"), seed=1)
    flat = {f"param/{name}": tensor for name, tensor in encoder.state_dict().items()}
    storage.write_tensors(tmp_path / storage.ENCODER, flat)
    other = build_encoder(ModelConfig(preset="tiny"), seed=2)
    restore_encoder(other, tmp_path)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    with pytest.raises(CheckpointError, match=r"holds another encoder .*model.preset"):
        restore_encoder(build_encoder(ModelConfig(preset="small"), seed=0), tmp_path)


def test_a_run_its_checkpoints_and_one_step_are_all_found(tmp_path: Path):
    step = save(tmp_path / "checkpoints", 5)
    (step / storage.ENCODER).write_bytes(b"")
    for path in (tmp_path, tmp_path / "checkpoints", step):
        assert checkpoint_folder(path) == step
    with pytest.raises(CheckpointError, match="no checkpoint here; name a run directory"):
        checkpoint_folder(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"config\.yaml: missing"):
        open_run(tmp_path)


def test_unreadable_state_is_a_typed_error(tmp_path: Path):
    (tmp_path / storage.STATE).write_text(json.dumps({})[:1])
    with pytest.raises(CheckpointError, match=r"state\.json: unreadable"):
        storage.read_state(tmp_path)
