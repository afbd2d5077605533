"""Step directories: whole or absent, checked before use, the one before used where one is
damaged."""

import errno
import json
import os
import re
import resource
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ovtrain.checkpoint import manager as manager_module
from ovtrain.checkpoint import storage
from ovtrain.checkpoint.encoder_shards import STEPS, EncoderReader, Shard, cut, file_name
from ovtrain.checkpoint.manager import Checkpoints
from ovtrain.checkpoint.restore import checkpoint_folder, open_run, restore_encoder
from ovtrain.checkpoint.snapshot import Snapshot
from ovtrain.checkpoint.state import Files
from ovtrain.checkpoint.tensor_files import TensorFile, read_tensors, write_tensors
from ovtrain.config.model import ModelConfig
from ovtrain.distributed.comm_time import CLOCK
from ovtrain.models.encoder import build_encoder
from ovtrain.schema.errors import CheckpointError
from tests.helpers.training import world

FILE = "counter.safetensors"


class Counter:
    """A part with one number, in a tensor of ``entries``."""

    def __init__(self, entries: int = 2) -> None:
        self.tensor = torch.zeros(entries)

    @property
    def value(self) -> float:
        return self.tensor[0].item()

    def files(self) -> Files:
        return {FILE: {"v": self.tensor}}

    def load(self, folder: Path) -> None:
        self.tensor.copy_(read_tensors(folder / FILE)["v"])


def manager(folder: Path, part: Counter, **settings) -> Checkpoints:
    chosen = {"every": 5, "keep": 2} | settings
    return Checkpoints(folder, {"counter": part}, world(), **chosen)


def save(folder: Path, *steps: int, **settings) -> Path:
    part = Counter()
    checkpoints = manager(folder, part, **settings)
    for step in steps:
        part.tensor.fill_(step)
        checkpoints.save({"step": step})
    checkpoints.wait()
    return newest(folder)


def newest(folder: Path) -> Path:
    return folder / (folder / storage.LATEST).read_text().strip()


def resumed(folder: Path) -> tuple[int, float]:
    """The step, and the value, that a start finds."""
    part = Counter()
    state = manager(folder, part).resume()
    assert state is not None
    return state["step"], part.value


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("background", [True, False])
def test_the_newest_state_comes_back(tmp_path: Path, background: bool):
    save(tmp_path, 5, 10, background=background)
    part = Counter()
    assert manager(tmp_path, part).resume() == {"step": 10, "world_size": 1}
    assert part.value == 10


def test_a_fresh_folder_has_nothing_to_resume(tmp_path: Path):
    assert manager(tmp_path / "none", Counter()).resume() is None


def test_only_the_newest_are_kept(tmp_path: Path):
    save(tmp_path, 5, 10, 15, 20)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["latest", "step-00000015", "step-00000020"]


def test_a_damaged_one_does_not_count_among_those_kept(tmp_path: Path):
    damaged(save(tmp_path, 3, 5), "flipped")
    part = Counter()
    checkpoints = manager(tmp_path, part)
    checkpoints.resume()
    for step, left in ((6, [3, 5, 6]), (9, [6, 9])):
        checkpoints.save({"step": step})
        checkpoints.wait()
        steps = [storage.step_of(path) for path in tmp_path.glob("step-*")]
        assert sorted(steps) == left


def test_every_so_many_steps_one_is_kept_for_good(tmp_path: Path):
    save(tmp_path, 5, 10, 15, 20, 25, 30, keep=1, keep_every=10)
    steps = sorted(storage.step_of(path) for path in tmp_path.glob("step-*"))
    assert steps == [10, 20, 30]


def test_an_old_checkpoint_that_cannot_be_deleted_fails_no_save(
    tmp_path: Path, monkeypatch, caplog
):
    save(tmp_path, 5)
    own = shutil.rmtree

    def held_open(path: Path, *given, **named) -> None:
        if path.name == "step-00000005":
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        own(path, *given, **named)

    monkeypatch.setattr(shutil, "rmtree", held_open)
    with caplog.at_level("WARNING"):
        assert save(tmp_path, 10, keep=1).name == "step-00000010"
    assert "could not delete old checkpoints" in caplog.text
    assert resumed(tmp_path) == (10, 10.0)


def test_a_run_set_back_to_an_older_step_loses_nothing_it_names(tmp_path: Path):
    save(tmp_path, 5, 10, 15, 20)
    (tmp_path / storage.LATEST).write_text("step-00000015\n")
    assert resumed(tmp_path) == (15, 15.0)
    assert save(tmp_path, 16).name == "step-00000016"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["latest", "step-00000015", "step-00000016", "step-00000020"]
    assert save(tmp_path, 20, 25).name == "step-00000025"
    assert not (tmp_path / "step-00000016").exists()


def test_saves_are_due_every_so_many_steps_and_at_the_end_but_not_twice(tmp_path: Path):
    checkpoints = manager(tmp_path, Counter())
    assert [s for s in range(1, 12) if checkpoints.due(s, final=False)] == [5, 10]
    checkpoints.save({"step": 10})
    checkpoints.wait()
    assert not checkpoints.due(10, final=True)
    assert checkpoints.due(11, final=True)


def test_what_changes_while_a_copy_is_written_is_not_in_it(tmp_path: Path, monkeypatch):
    go_on, write = threading.Event(), write_tensors
    monkeypatch.setattr(
        manager_module, "write_tensors", lambda *given: (go_on.wait(20), write(*given))[1]
    )
    part = Counter()
    part.tensor.fill_(7)
    checkpoints = manager(tmp_path, part)
    checkpoints.save({"step": 1})
    part.tensor.fill_(8)  # the loop goes on: nothing is on disk yet
    checkpoints.poll()
    assert not (tmp_path / storage.LATEST).exists()
    go_on.set()
    checkpoints.wait()
    assert resumed(tmp_path) == (1, 7.0)


def test_memory_is_set_aside_once():
    snapshot, part = Snapshot(), Counter(1000)
    assert snapshot.reserve(part.files()) == 4000
    first = snapshot.take(part.files())[FILE]["v"]
    part.tensor.fill_(3)
    again = snapshot.take(part.files())[FILE]["v"]
    assert first.data_ptr() == again.data_ptr() != part.tensor.data_ptr()
    assert again.tolist() == part.tensor.tolist()


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_costs_nothing_older_and_is_told(tmp_path: Path, background: bool):
    save(tmp_path, 5)
    checkpoints = manager(tmp_path, Counter(100_000), background=background)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError) as caught:  # noqa: PT012 (either call may raise)
            checkpoints.save({"step": 10})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for part in ("step-00000010: could not be saved", "rank 0: File too large", "make room"):
        assert part in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000005"]
    assert resumed(tmp_path) == (5, 5.0)


def test_a_failed_save_in_the_background_is_raised_by_the_loop(tmp_path: Path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    checkpoints = manager(tmp_path / "checkpoints", Counter())
    checkpoints.save({"step": 5})
    while checkpoints.busy():
        time.sleep(0.01)
    with pytest.raises(CheckpointError, match="could not be saved"):
        checkpoints.poll()


def test_what_a_killed_save_left_is_gone_after_the_next(tmp_path: Path):
    (tmp_path / ".step-00000003.tmp").mkdir(parents=True)
    (tmp_path / ".latest.123.456.tmp").write_text("step-000")
    save(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000005"]


def test_the_same_step_may_be_saved_again(tmp_path: Path):
    assert save(tmp_path, 5, 5).name == "step-00000005"


def damaged(step: Path, kind: str) -> str:
    """Damage a step directory; what is said of it."""
    path = step / FILE
    if kind == "missing":
        path.unlink()
        return f"{FILE} is missing"
    if kind == "no manifest":
        (step / storage.MANIFEST).unlink()
        return r"manifest\.json: unreadable"
    if kind == "state":
        flip(step / storage.STATE, 5)
        return r"state\.json is damaged: other bytes"
    if kind == "manifest":
        text = (step / storage.MANIFEST).read_text()
        (step / storage.MANIFEST).write_text(text.replace(FILE, "counter.safetensorz"))
        return r"manifest\.json: is damaged"
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-1])
        return f"{FILE} is damaged: 79 bytes instead of 80"
    flip(path)
    return f"{FILE} is damaged: other bytes"


KINDS = ["missing", "cut", "flipped", "manifest", "no manifest", "state"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_before_a_damaged_one_is_used_and_that_one_named(
    tmp_path: Path, caplog, kind: str
):
    fault = damaged(save(tmp_path, 5, 10), kind)
    with caplog.at_level("WARNING"):
        assert resumed(tmp_path) == (5, 5.0)
        assert checkpoint_folder(tmp_path).name == "step-00000005"
    refused = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert len(refused) == 2
    for text in refused:
        assert "step-00000010" in text
    assert re.search(fault, refused[0]), refused[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_no_sound_checkpoint_does_not_start_anew(tmp_path: Path, kind: str):
    fault = damaged(save(tmp_path, 5), kind)
    with pytest.raises(CheckpointError, match=rf"no checkpoint is sound: .*{fault}"):
        manager(tmp_path, Counter()).resume()
    with pytest.raises(CheckpointError, match=f"no sound checkpoint here: .*{fault}"):
        checkpoint_folder(tmp_path)


def test_a_run_whose_checkpoints_are_all_gone_does_not_start_anew(tmp_path: Path):
    shutil.rmtree(save(tmp_path, 5))
    with pytest.raises(CheckpointError, match="latest names one, but there is none"):
        manager(tmp_path, Counter()).resume()


def test_the_checkpoint_before_one_that_the_disk_does_not_give_is_used(
    tmp_path: Path, monkeypatch, caplog
):
    bad, own = save(tmp_path, 5, 10) / FILE, storage.file_sha256

    def failing(path: Path) -> str:
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return own(path)

    monkeypatch.setattr(storage, "file_sha256", failing)
    with caplog.at_level("WARNING"):
        assert resumed(tmp_path) == (5, 5.0)
    assert f"{FILE} cannot be read: Input/output error" in caplog.text


def test_a_save_in_the_background_is_no_communication_of_the_loop(tmp_path: Path, monkeypatch):
    def write_slowly(*given) -> dict[str, object]:
        with CLOCK.measured(None):
            time.sleep(0.05)
        return write_tensors(*given)

    monkeypatch.setattr(manager_module, "write_tensors", write_slowly)
    CLOCK.read(1)
    save(tmp_path, 5)
    assert CLOCK.read(1)["comm_ms"] == 0


@pytest.mark.parametrize("pointer", [None, "step-00000099\n", "\x00\xff", ""])
def test_a_lost_pointer_does_not_lose_the_run(tmp_path: Path, pointer: str | None):
    save(tmp_path, 5, 10)
    (tmp_path / storage.LATEST).unlink()
    if pointer is not None:
        (tmp_path / storage.LATEST).write_text(pointer)
    assert resumed(tmp_path) == (10, 10.0)


def test_steps_beyond_eight_digits_are_in_order(tmp_path: Path):
    save(tmp_path, 99_999_999, 100_000_000, keep=2)
    (tmp_path / storage.LATEST).unlink()
    assert resumed(tmp_path)[0] == 100_000_000


def test_another_version_is_refused_by_its_number(tmp_path: Path):
    path = save(tmp_path, 5) / storage.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 1}))
    with pytest.raises(CheckpointError, match="version 1; allowed: 2"):
        manager(tmp_path, Counter()).resume()


def test_tensor_files_are_safetensors_and_read_by_parts(tmp_path: Path):
    tensors = {
        "a": torch.arange(12.0).view(3, 4),
        "b": torch.arange(5, dtype=torch.int64),
        "c": torch.randn(7).bfloat16(),
        "empty": torch.empty(0, 4),
        "strided": torch.arange(12.0).view(3, 4).t(),
    }
    path = tmp_path / "t.safetensors"
    entry = write_tensors(path, tensors)
    assert entry["bytes"] == path.stat().st_size
    assert storage.faults(tmp_path, {"t.safetensors": entry}) == []
    for name, tensor in load_file(str(path)).items():
        assert torch.equal(tensor, tensors[name]), name
    file = TensorFile(path)
    assert file.lengths == {"a": 3, "b": 5, "c": 7, "empty": 0, "strided": 4}
    assert torch.equal(file.read("a", 1, 3), tensors["a"][1:3])


def test_damaged_files_are_typed_errors(tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    for read in (read_tensors, TensorFile):
        with pytest.raises(CheckpointError, match=r"a\.safetensors: unreadable"):
            read(tmp_path / "a.safetensors")
    (tmp_path / storage.STATE).write_text(json.dumps({})[:1])
    with pytest.raises(CheckpointError, match=r"state\.json: unreadable"):
        storage.read_state(tmp_path)


def write_encoder(folder: Path, named: dict[str, torch.Tensor], ranks: int) -> None:
    """As ``ranks`` ranks with even parts write it, moments being the parameters' negatives."""
    shards = [
        Shard(part, name, 0, (sign * tensor).flatten())
        for part, sign in (("param", 1), ("first", -1), ("second", -1))
        for name, tensor in named.items()
    ]
    total = sum(len(shard.values) for shard in shards)
    for rank in range(ranks):
        own = cut(shards, world(rank, ranks).slice_of(total), total)
        steps = {STEPS: torch.tensor([9.0])} if rank == 0 else {}
        write_tensors(
            folder / file_name(rank, ranks), {shard.key: shard.values for shard in own} | steps
        )


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_an_encoder_comes_back_from_any_number_of_ranks(tmp_path: Path, ranks: int):
    encoder = build_encoder(ModelConfig(preset="tiny"), seed=1)
    write_encoder(tmp_path, encoder.state_dict(), ranks)
    other = build_encoder(ModelConfig(preset="tiny"), seed=2)
    restore_encoder(other, tmp_path)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    reader = EncoderReader(tmp_path)
    assert reader.steps == 9
    whole = encoder.state_dict()["layers.0.mlp.fc1.weight"].flatten()
    assert torch.equal(reader.read("first", "layers.0.mlp.fc1.weight", 100, 4000), -whole[100:4000])
    with pytest.raises(CheckpointError, match=r"holds another encoder .*model.preset"):
        restore_encoder(build_encoder(ModelConfig(preset="small"), seed=0), tmp_path)


def test_a_lost_rank_file_is_no_smaller_encoder(tmp_path: Path):
    encoder = build_encoder(ModelConfig(preset="tiny"), seed=1)
    write_encoder(tmp_path, encoder.state_dict(), 4)
    (tmp_path / file_name(0, 4)).unlink()
    with pytest.raises(CheckpointError, match=r"another encoder|are not whole"):
        restore_encoder(encoder, tmp_path)
    with pytest.raises(CheckpointError, match="no count of the encoder's updates"):
        _ = EncoderReader(tmp_path).steps


def test_a_run_its_checkpoints_and_one_step_are_all_found(tmp_path: Path):
    step = save(tmp_path / "checkpoints", 5)
    for path in (tmp_path, tmp_path / "checkpoints", step):
        assert checkpoint_folder(path) == step
    with pytest.raises(CheckpointError, match="no checkpoint here; name a run directory"):
        checkpoint_folder(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"config\.yaml: missing"):
        open_run(tmp_path)
