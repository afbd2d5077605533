"""What a user sees when the input is wrong: one message with a remedy, status 2, no traceback."""

import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ovtrain import train
from ovtrain.checkpoint import storage
from ovtrain.checkpoint.restore import checkpoint_folder
from ovtrain.observability.history import read_events
from ovtrain.schema.labels import LabelStore
from tests.helpers.training import computed, fit, logged, metrics, typed_config, write_config
from tests.helpers.world import environment


@pytest.fixture
def folder(setup_folder: Path, tmp_path: Path) -> Path:
    """A set-up of its own, to be damaged."""
    shutil.copytree(setup_folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def error(folder: Path, monkeypatch, capsys):
    """Run ``ovtrain.train`` in this process with overrides; its message after status 2."""
    monkeypatch.setattr(train, "job_logger", lambda *_: logging.getLogger("quiet"))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    config = write_config(folder, "run", backend="ddp", steps=2)

    def run(*overrides: str) -> str:
        assert train.main([config, *overrides]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert "Traceback" not in shown
        assert len(shown) < 700
        return shown

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_typo_names_the_key_and_suggests(error):
    shown = error("head.sample_rat=0.1")
    assert "head.sample_rat=0.1" in shown
    assert "did you mean sample_rate?" in shown


def test_a_missing_config_lists_the_shipped_ones(capsys):
    assert train.main(["nosuch"]) == 2
    assert "pretrain/debug-stage1" in capsys.readouterr().err


def test_no_config_at_all_says_how_to_call(capsys):
    assert train.main([]) == 2
    assert "CONFIG.yaml" in capsys.readouterr().err


def test_a_missing_shard(error, folder: Path):
    (folder / "video" / "video-000001.tar").unlink()
    shown = error()
    assert "video-000001.tar is missing" in shown
    assert "ovtrain prepare" in shown


def test_a_truncated_tar(error, folder: Path):
    tar = folder / "image" / "image-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1000])
    assert "image-000000.tar has" in error()


def test_an_empty_folder(error, folder: Path):
    shutil.rmtree(folder / "video")
    (folder / "video").mkdir()
    assert "no shard manifest here" in error()


def test_labels_of_other_shards(error, folder: Path):
    store = LabelStore.read(folder / "video-labels")
    LabelStore(store.keys, store.offsets, store.ids, store.classes, "0" * 32).write(
        folder / "video-labels"
    )
    shown = error()
    assert "labels made from shards 000000000000" in shown
    assert "ovtrain cluster" in shown


def test_no_labels_where_labels_should_be(error, folder: Path):
    shutil.rmtree(folder / "video-labels")
    assert "no labels store here" in error()


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff{", b"7"])
def test_labels_and_manifests_that_are_none(error, folder: Path, text: bytes):
    path = folder / "video-labels" / "store.json"
    before = path.read_bytes()
    path.write_bytes(text)
    assert f"{path}: not " in error()
    path.write_bytes(before)
    (folder / "image" / "manifest.json").write_bytes(text)
    assert "manifest.json: not a shard manifest" in error()


def test_a_config_that_is_not_text(capsys, tmp_path: Path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe")
    assert train.main([str(tmp_path / "bad.yaml")]) == 2
    assert "bad.yaml: cannot be read" in capsys.readouterr().err


def test_damaged_labels(error, folder: Path):
    np.save(folder / "video-labels" / "ids.npy", np.full(72, 99, np.int32))
    assert "ids from 99 to 99; allowed: 0 to 39" in error()


@pytest.fixture
def trained(folder: Path) -> Path:
    """Two steps of the run that ``error`` would continue; its newest checkpoint."""
    fit(typed_config(folder, backend="ddp", steps=2, out=str(folder / "run")))
    return checkpoint_folder(folder / "run")


def test_a_damaged_checkpoint(error, trained: Path):
    path = next(trained.glob("encoder-*"))
    path.write_bytes(path.read_bytes()[:-8])
    shown = error()
    assert "no checkpoint is sound" in shown
    assert "encoder-00000-of-00001.safetensors is damaged" in shown


def test_a_lost_class_range(error, trained: Path):
    next(trained.glob("head-video-*")).unlink()
    assert "head-video-000000000-000000040.safetensors is missing" in error()


def test_another_config_for_the_same_run(error, trained: Path):
    shown = error("optim.lr=0.5")
    assert "belongs to another config: optim.lr=0.5 (was 0.001)" in shown


def test_init_from_a_folder_without_checkpoints(error, folder: Path):
    overrides = [f"run.init_from={folder / 'video'}", f"run.out={folder / 'other'}"]
    assert "no checkpoint here" in error(*overrides)


def test_a_corrupt_clip_is_quarantined_and_training_goes_on(folder: Path):
    tar = folder / "video" / "video-000000.tar"
    data = tar.read_bytes()
    at = data.index(b"ftyp")
    tar.write_bytes(data[:at] + bytes(64) + data[at + 64 :])
    fit(typed_config(folder, backend="ddp", steps=8, out=str(folder / "run")))
    rows = metrics(folder / "run")
    (line,) = (folder / "run" / "quarantine-00000.jsonl").read_text().splitlines()
    for part in ("video-000000.tar/video-0-0000", "does not decode", '"step": '):
        assert part in line
    assert (rows[-1]["step"], rows[-1]["bad_samples"]) == (8, 1)
    assert rows[-1]["bad_reasons"] == {"does not decode": 1}
    assert sum(rows[-1]["views"].values()) == 8 * 8 - 1
    seen = [row["step"] for row in rows if row["bad_samples"]]
    assert f'"step": {seen[0]}}}' in line  # counted in the step that met it


def status_and_error(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ovtrain.train", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


def test_the_process_exits_with_status_2_and_the_message_last(folder: Path):
    (folder / "video" / "manifest.json").write_text("{}")
    config = write_config(folder, "run", backend="ddp", steps=2)
    status, shown = status_and_error(config)
    assert status == 2
    last = shown.strip().splitlines()[-1]
    assert last.startswith(f"error: {folder}/video/manifest.json: not a shard manifest")
    assert "Traceback" not in shown


def test_a_terminated_process_saves_exits_with_75_and_resumes(folder: Path):
    config = write_config(folder, "run", backend="ddp", steps=2000, checkpoint_every=10_000)
    command = [sys.executable, "-m", "ovtrain.train", config]
    job = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not logged(folder / "run"):
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 75
    stopped = storage.read_state(checkpoint_folder(folder / "run"))["step"]
    assert computed(folder / "run")[-1]["step"] == stopped
    assert 0 < stopped < 2000
    assert (folder / "run" / "environment.json").is_file()
    start, stop = read_events(folder / "run" / "metrics.jsonl")
    assert (start["event"], stop["event"], stop["step"]) == ("start", "stop", stopped)
