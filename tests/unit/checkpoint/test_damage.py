"""Checked before use: the checkpoint before a damaged one is used, and nothing older is lost."""

import errno
import json
import os
import re
import resource
import shutil
import time
from pathlib import Path

import pytest

from ovtrain.checkpoint import storage
from ovtrain.checkpoint.restore import checkpoint_folder
from ovtrain.schema.errors import CheckpointError
from tests.helpers.checkpoints import FILE, Counter, flip, manager, resumed, save


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
