"""Step directories: whole or absent, the newest kept, written beside the loop."""

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from ovtrain.checkpoint import manager as manager_module
from ovtrain.checkpoint import storage
from ovtrain.checkpoint.restore import checkpoint_folder, open_run
from ovtrain.checkpoint.snapshot import Snapshot
from ovtrain.checkpoint.tensor_files import write_tensors
from ovtrain.distributed.comm_time import CLOCK
from ovtrain.schema.errors import CheckpointError
from tests.helpers.checkpoints import FILE, Counter, manager, resumed, save


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


def test_what_a_killed_save_left_is_gone_after_the_next(tmp_path: Path):
    (tmp_path / ".step-00000003.tmp").mkdir(parents=True)
    (tmp_path / ".latest.123.456.tmp").write_text("step-000")
    save(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000005"]


def test_the_same_step_may_be_saved_again(tmp_path: Path):
    assert save(tmp_path, 5, 5).name == "step-00000005"


def test_a_run_its_checkpoints_and_one_step_are_all_found(tmp_path: Path):
    step = save(tmp_path / "checkpoints", 5)
    for path in (tmp_path, tmp_path / "checkpoints", step):
        assert checkpoint_folder(path) == step
    with pytest.raises(CheckpointError, match="no checkpoint here; name a run directory"):
        checkpoint_folder(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"config\.yaml: missing"):
        open_run(tmp_path)


def test_a_save_in_the_background_is_no_communication_of_the_loop(tmp_path: Path, monkeypatch):
    def write_slowly(*given) -> dict[str, object]:
        with CLOCK.measured(None):
            time.sleep(0.05)
        return write_tensors(*given)

    monkeypatch.setattr(manager_module, "write_tensors", write_slowly)
    CLOCK.read(1)
    save(tmp_path, 5)
    assert CLOCK.read(1)["comm_ms"] == 0
