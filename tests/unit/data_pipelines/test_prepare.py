"""Raw media to shards: what is kept, what is named as skipped, and what a second run does."""

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_iterator

from data_pipelines import prepare as room
from data_pipelines.plan import Keys
from data_pipelines.shards.verify import verify
from data_pipelines.shards.writer import Sample
from data_pipelines.store import SampleStore
from ovtrain.schema.errors import ConfigError, ManifestError, MediaError
from ovtrain.schema.manifest import ShardIndex, ShardManifest
from ovtrain.schema.sample import MEMBERS, Kind, SampleMeta

from .conftest import PREPARE, SYNTHETIC


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def dataset(folder: Path) -> list[dict]:
    """All samples, grouped by webdataset's own iterators (its WebDataset leaves files open)."""
    samples: list[dict] = []
    for path in sorted(folder.glob("*.tar")):
        with open(path, "rb") as handle:
            samples += group_by_keys({**f, "__url__": str(path)} for f in tar_file_iterator(handle))
    return samples


def test_bad_files_are_named_with_their_reason(prepared: Path):
    skipped = {row["file"]: row["reason"] for row in rows(prepared / "skipped.jsonl")}
    assert skipped == {
        "noise.mp4": "unreadable (Invalid data found when processing input)",
        "notes.txt": "no media suffix",
        "short.mp4": "fewer than 8 decodable frames (5)",
    }


def test_the_summary_counts_what_happened(prepared: Path):
    summary = json.loads((prepared / "summary.json").read_text())
    assert summary["files"] == {"read": 7, "kept": 5, "skipped": 3}
    assert (summary["passed_through"], summary["transcoded"]) == (4, 1)
    assert summary["samples"] == {"video": 5, "image": 10}
    assert summary["origins"] == {"hevc-bitstream": 4, "hevc-transcode": 1}
    assert sum(summary["skipped_by_reason"].values()) == 3


def test_generated_clips_pass_through_unchanged(prepared: Path, clips: Path):
    found = {sample["__key__"]: sample["mp4"] for sample in dataset(prepared / "video")}
    for path in (clips / "train").glob("*.mp4"):
        assert found[path.stem] == path.read_bytes()


def test_shards_are_plain_webdataset_with_the_stated_members(prepared: Path):
    for sample in dataset(prepared / "video"):
        assert {"mp4", "energy.npy", "json"} <= set(sample)
        energy = np.load(io.BytesIO(sample["energy.npy"]))
        assert (energy.shape, energy.dtype) == ((32, 8, 8), np.uint16)
        assert energy.any()
        meta = SampleMeta.from_json(sample["json"], "here")
        assert meta.key == sample["__key__"]
    for sample in dataset(prepared / "image"):
        assert Image.open(io.BytesIO(sample["jpg"])).size == (112, 112)


def test_the_transcoded_clip_has_the_papers_structure(prepared: Path):
    (sample,) = [s for s in dataset(prepared / "video") if s["__key__"] == "street_view_v2"]
    assert SampleMeta.from_json(sample["json"], "").media == "street view.v2.mp4"
    with av.open(io.BytesIO(sample["mp4"])) as container:
        frames = list(container.decode(video=0))
        assert container.streams.video[0].codec_context.name == "hevc"
    assert [PictureType(frame.pict_type).name for frame in frames] == ["I"] + ["P"] * 31
    assert {(frame.width, frame.height) for frame in frames} == {(112, 112)}


@pytest.mark.parametrize("kind", ["video", "image"])
def test_index_offsets_point_at_the_payloads(prepared: Path, kind: str):
    manifest = ShardManifest.read(prepared / kind)
    by_key = {sample["__key__"]: sample for sample in dataset(prepared / kind)}
    assert manifest.samples == len(by_key)
    for shard in manifest.shards:
        raw = (prepared / kind / shard.name).read_bytes()
        index = ShardIndex.read((prepared / kind / shard.name).with_suffix(".npz"))
        for row, key in enumerate(index.keys):
            for column, name in enumerate(MEMBERS[kind]):
                start = index.offsets[row, column]
                payload = raw[start : start + index.sizes[row, column]]
                assert payload == by_key[key][name]


def test_verify_accepts_what_was_written_and_names_what_was_changed(prepared: Path, tmp_path: Path):
    for kind in ("video", "image"):
        assert verify(prepared / kind).kind == kind
    for path in (prepared / "video").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tar = tmp_path / "video-000001.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"origin"', b'"0rigin"'))
    with pytest.raises(ManifestError, match=r"video-000001\.tar has another sha256"):
        verify(tmp_path)
    with pytest.raises(ManifestError, match=r"not sample metadata"):
        verify(tmp_path, hashes=False)


def test_panels_are_drawn(prepared: Path):
    panels = list((prepared / "panels").glob("*.png"))
    assert len(panels) == 4
    with Image.open(panels[0]) as page:
        assert page.width > 1000


def test_a_second_run_does_nothing_and_an_interrupted_one_goes_on(
    prepared: Path, tmp_path: Path, monkeypatch, capsys
):
    videos = Path((prepared / "videos").read_text())
    assert not room.prepare(videos, prepared, replace(PREPARE, workers=2))

    added: list[str] = []

    def interrupt(store: SampleStore, kind: Kind, sample: Sample) -> dict:
        added.append(sample[0])
        if len(added) == 8:
            raise KeyboardInterrupt
        return add(store, kind, sample)

    add = SampleStore.add
    with monkeypatch.context() as patch:
        patch.setattr(SampleStore, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            room.prepare(videos, tmp_path, PREPARE)
    capsys.readouterr()
    assert room.prepare(videos, tmp_path, PREPARE)
    # Two clips with their stills were there; the one that failed may be tried again.
    said = capsys.readouterr().out
    assert "inventory" not in said
    assert re.search(r"samples: ([34]) of \1 clips and pictures", said)
    for kind in ("video", "image"):
        name = f"{kind}/manifest.json"
        assert (tmp_path / name).read_bytes() == (prepared / name).read_bytes()
    assert not (tmp_path / ".work").exists()


def test_all_files_skipped_is_an_error_that_counts_the_reasons(tmp_path: Path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_bytes(b"nothing")
    (tmp_path / "in/b.mp4").write_bytes(b"nothing")
    status = room.main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "size=112"])
    error = capsys.readouterr().err
    assert status == 2
    assert "no file gave a sample: 2 x unreadable" in error
    assert len(rows(tmp_path / "out/skipped.jsonl")) == 2


def test_odd_names_and_files_that_are_no_files_are_named_and_skipped(clips: Path, tmp_path: Path):
    videos = tmp_path / "in"
    videos.mkdir()
    good = sorted((clips / "train").glob("*.mp4"))[0].read_bytes()
    (videos / "ü ö\n.mp4").write_bytes(good)
    (videos / os.fsdecode(b"caf\xe9.mp4")).write_bytes(good)
    (videos / os.fsdecode(b"notes\xff")).write_text("x")
    (videos / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    os.mkfifo(videos / "pipe.mp4")
    assert room.prepare(videos, tmp_path / "out", PREPARE)
    skipped = {row["file"]: row["reason"] for row in rows(tmp_path / "out/skipped.jsonl")}
    assert skipped == {
        "caf\\xe9.mp4": "its path is not UTF-8",
        "notes\\xff": "no media suffix",
        "gone.mp4": "not a regular file (a dangling link, a pipe or a device)",
        "pipe.mp4": "not a regular file (a dangling link, a pipe or a device)",
    }
    assert ShardManifest.read(tmp_path / "out/video").samples == 1


def test_an_empty_folder_and_a_bad_size_are_typed_errors(tmp_path: Path):
    with pytest.raises(MediaError, match="no media among 0 files"):
        room.prepare(tmp_path, tmp_path / "out", PREPARE)
    with pytest.raises(ConfigError, match="multiple of patch"):
        room.prepare(tmp_path, tmp_path / "out", replace(PREPARE, size=113))


def test_keys_are_clean_and_unique():
    names = ["a/x.mp4", "b/x.mp4", "ü.1.mp4", f"{'long' * 40}.mp4"]
    keys = Keys()
    assert [keys(name) for name in names] == ["x", "x-2", "__1", ("long" * 40)[:60]]
    assert SYNTHETIC.frames == PREPARE.frames
