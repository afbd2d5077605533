"""Damaged shards: verify names what is wrong, repair keeps what is sound."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.shards.repair import main, repair
from data_pipelines.shards.verify import verify
from data_pipelines.shards.writer import write_source
from ovtrain.schema.errors import ManifestError
from ovtrain.schema.manifest import ShardIndex, ShardManifest

from .test_prepare import dataset


@pytest.fixture
def shards(prepared: Path, tmp_path: Path) -> Path:
    """Five clips in two shards, of three and two."""
    folder = tmp_path / "video"
    shutil.copytree(prepared / "video", folder)
    return folder


def keys(folder: Path) -> list[str]:
    return [sample["__key__"] for sample in dataset(folder)]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 255
    path.write_bytes(data)


def place(tar: Path, row: int, column: int) -> int:
    return int(ShardIndex.read(tar.with_suffix(".npz")).offsets[row, column])


def test_sound_shards_are_left_alone(shards: Path):
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    for name in ("verify", "repair"):
        command = [sys.executable, "-m", f"data_pipelines.shards.{name}", str(shards), "--media"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "all as stated" in said or "nothing to repair" in said
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before


@pytest.mark.parametrize("column", [0, 1, 2])
def test_one_changed_byte_costs_its_sample(shards: Path, column: int):
    tar, every = shards / "video-000000.tar", keys(shards)
    flip(tar, place(tar, 1, column) + 90)
    with pytest.raises(ManifestError, match=r"video-000000\.tar has another sha256"):
        verify(shards)
    done = repair(shards)
    assert list(done.dropped) == [f"video-000000.tar/{every[1]}"]
    assert done.dropped[f"video-000000.tar/{every[1]}"].startswith("checksum differs")
    assert keys(shards) == [every[0], *every[2:]]
    assert verify(shards, media=True).samples == 4
    assert json.loads((shards / "repair.json").read_text()) == vars(done)


def test_what_lies_behind_a_damaged_header_is_found_by_the_index(shards: Path):
    tar, every = shards / "video-000000.tar", keys(shards)
    flip(tar, place(tar, 1, 0) - 512)
    assert repair(shards).dropped == {}
    assert keys(shards) == every
    verify(shards)


def test_a_tar_that_was_cut_short_keeps_what_is_there(shards: Path):
    tar, every = shards / "video-000000.tar", keys(shards)
    end = place(tar, 2, 0) + 100
    tar.write_bytes(tar.read_bytes()[:end])
    assert list(repair(shards).dropped) == [f"video-000000.tar/{every[2]}"]
    assert keys(shards) == [*every[:2], *every[3:]]
    verify(shards)


def test_missing_tars_and_wrong_indexes(shards: Path):
    every = keys(shards)
    (shards / "video-000001.tar").unlink()
    index = shards / "video-000000.npz"
    found = ShardIndex.read(index)
    ShardIndex(found.keys[::-1], found.offsets, found.sizes, found.crcs).write(index)
    with pytest.raises(ManifestError, match=r"video-000001\.tar is missing"):
        verify(shards)
    done = repair(shards)
    assert (done.missing, done.indexed) == (
        ["video-000001.tar"],
        ["video-000000.npz"[:-4] + ".tar"],
    )
    assert keys(shards) == every[:3]
    assert verify(shards).samples == 3


@pytest.mark.parametrize("content", [b"", b"noise"])
def test_an_index_that_is_lost_is_written_anew(shards: Path, content: bytes):
    every = keys(shards)
    (shards / "video-000000.npz").write_bytes(content)
    assert repair(shards).indexed == ["video-000000.tar"]
    assert keys(shards) == every
    verify(shards)


def test_other_members_and_descriptions_do_not_pass(shards: Path):
    """A tar that somebody rewrote, without an index: each sample is judged by itself."""
    tar, every = shards / "video-000000.tar", keys(shards)
    samples = dataset(shards)[:3]
    energy = io.BytesIO()
    np.save(energy, np.zeros((32, 8, 7), np.uint16))
    samples[0]["energy.npy"] = energy.getvalue()
    del samples[1]["mp4"]
    samples[2]["json"] = samples[0]["json"]
    with tarfile.open(tar, "w") as archive:
        for sample in samples:
            for name in ("mp4", "energy.npy", "json"):
                if name in sample:
                    info = tarfile.TarInfo(f"{sample['__key__']}.{name}")
                    info.size = len(sample[name])
                    archive.addfile(info, io.BytesIO(sample[name]))
    (shards / "video-000000.npz").unlink()
    done = repair(shards)
    assert {name.split("/")[1]: reason for name, reason in done.dropped.items()} == {
        every[0]: "energy is damaged (uint16 (32, 8, 7))",
        every[1]: "without mp4",
        every[2]: f"metadata of video {every[0]}",
    }
    assert keys(shards) == every[3:]
    assert [shard.name for shard in ShardManifest.read(shards).shards] == ["video-000001.tar"]
    verify(shards)


def test_what_does_not_decode_is_found_by_decoding(shards: Path):
    """Damage from before the checksums were taken: only a decoder sees it."""
    every = keys(shards)
    clips = {sample["__key__"]: dict(sample) for sample in dataset(shards)}
    clips[every[0]]["mp4"] = clips[every[0]]["mp4"][:-300] + bytes(300)  # where its boxes lie
    write_source(shards, ShardManifest.read(shards), clips.items(), 3)
    assert verify(shards).samples == 5
    with pytest.raises(ManifestError, match=every[0]):
        verify(shards, media=True)
    assert list(repair(shards, media=True).dropped) == [f"video-000000.tar/{every[0]}"]
    assert verify(shards, media=True).samples == 4


def test_samples_of_a_list_are_dropped_and_a_dry_run_changes_nothing(
    shards: Path, tmp_path: Path, capsys
):
    every = keys(shards)
    names = tmp_path / "drop.jsonl"
    names.write_text(json.dumps({"file": every[4]}) + "\n\n" + json.dumps({"file": "none"}))
    assert main([str(shards), "--drop", str(names), "--dry-run"]) == 0
    assert f"would drop video-000001.tar/{every[4]}: asked for" in capsys.readouterr().out
    assert keys(shards) == every
    assert main([str(shards), "--drop", str(names)]) == 0
    assert keys(shards) == every[:4]
    verify(shards)
    names.write_text("[1]")
    assert main([str(shards), "--drop", str(names)]) == 2
    assert "no list" in capsys.readouterr().err
