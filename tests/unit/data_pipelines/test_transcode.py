"""Inventory records and the cutting of clips."""

import io
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipelines.frames import Frames, read_frames
from data_pipelines.inventory.media import MediaFile
from data_pipelines.inventory.probe import VideoRecord
from data_pipelines.inventory.probe import probe as probe_media
from data_pipelines.plan import Place, places
from data_pipelines.transcode import cut_clip, passes_through
from ovtrain.schema.errors import MediaError

from .conftest import PREPARE, write_h264


def probe(folder: Path, name: str) -> VideoRecord:
    record = probe_media(folder, MediaFile(name, name))
    assert isinstance(record, VideoRecord)
    return record


def read(path: Path, start: int, count: int, size: int) -> Frames:
    place = Place(start, count)
    return read_frames(path.parent, probe(path.parent, path.name), place, count, size)


def test_the_record_tells_what_the_file_is(tmp_path: Path):
    write_h264(tmp_path / "a.mp4", frames=30, rotation=90)
    record = asdict(probe(tmp_path, "a.mp4"))
    assert record.pop("state") == ((tmp_path / "a.mp4").stat().st_size, record_time(tmp_path))
    assert record | {"bytes": 0} == {
        "path": "a.mp4",
        "bytes": 0,
        "codec": "h264",
        "pix_fmt": "yuv420p",
        "width": 160,
        "height": 96,
        "fps": 25.0,
        "frames": 30,
        "duration": 1.2,
        "gop": 30,
        "reordered": False,
        "rotation": 90,
        "video_tracks": 1,
        "audio_tracks": 0,
        "variable_rate": False,
        "file": "a.mp4",
        "offset": 0,
        "size": -1,
        "content": "",
    }


def record_time(folder: Path) -> int:
    return (folder / "a.mp4").stat().st_mtime_ns


def test_a_file_without_video_is_a_media_error(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"x" * 1000)
    with pytest.raises(MediaError, match="unreadable"):
        probe(tmp_path, "a.mp4")


def test_a_clip_holds_the_frames_from_its_start(tmp_path: Path):
    write_h264(tmp_path / "a.mp4", frames=100)
    levels = read(tmp_path / "a.mp4", 37, 8, 96)[:, 10, 10].astype(int)
    # Limited range: grey level g is luma 16 + g * 219 / 255.
    expected = 16 + 2 * np.arange(37, 45) * 219 / 255
    assert np.abs(levels - expected).max() < 2


def test_a_late_clip_is_reached_by_seeking_to_the_same_frames(tmp_path: Path, monkeypatch):
    write_h264(tmp_path / "a.mp4", frames=120)
    decoded = read(tmp_path / "a.mp4", 70, 8, 96)
    monkeypatch.setattr("data_pipelines.frames.SEEK_FRAMES", 10)
    assert np.array_equal(read(tmp_path / "a.mp4", 70, 8, 96), decoded)


@pytest.mark.parametrize(
    ("rotation", "dark"), [(0, "left"), (90, "bottom"), (180, "right"), (-90, "top")]
)
def test_rotation_metadata_turns_the_picture_upright(tmp_path: Path, rotation: int, dark: str):
    write_h264(tmp_path / "a.mp4", frames=8, rotation=rotation)
    luma = read(tmp_path / "a.mp4", 0, 8, 96)[0, :96].astype(int)
    sides = {
        "left": luma[:, :30],
        "right": luma[:, -30:],
        "top": luma[:30],
        "bottom": luma[-30:],
    }
    assert min(sides, key=lambda side: sides[side].mean()) == dark


def test_clip_starts_are_seeded_distinct_and_inside(tmp_path: Path):
    write_h264(tmp_path / "a.mp4", frames=50)
    record = probe(tmp_path, "a.mp4")
    config = replace(PREPARE, clips_per_video=5)
    starts = [place.start for place in places(record, [None], [], config)]
    assert starts == [place.start for place in places(record, [None], [], config)]
    assert len(set(starts)) == 5
    assert 0 <= min(starts) <= max(starts) <= 18
    assert starts != [p.start for p in places(record, [None], [], replace(config, seed=1))]


def test_a_short_video_is_sampled_uniformly_onto_the_clip(tmp_path: Path):
    write_h264(tmp_path / "a.mp4", frames=16)
    record = probe(tmp_path, "a.mp4")
    (place,) = places(record, [None], [], PREPARE)
    clip = cut_clip(tmp_path, record, place, PREPARE)
    assert (clip.transcoded, clip.resampled) == (True, True)
    with av.open(io.BytesIO(clip.payload)) as container:
        levels = [int(f.to_ndarray()[10, 10]) for f in container.decode(video=0)]
    assert len(levels) == 32
    assert abs(levels[-1] - (16 + 30 * 219 / 255)) < 3


def test_only_files_that_need_nothing_pass_through(clips: Path):
    record = probe(clips, "train/train-000000.mp4")
    assert passes_through(record, PREPARE)
    for change in (
        {"codec": "h264"},
        {"pix_fmt": "yuv420p10le"},
        {"width": 128},
        {"frames": 33},
        {"gop": 16},
        {"reordered": True},
        {"reordered": None},
        {"rotation": 90},
        {"audio_tracks": 1},
    ):
        assert not passes_through(replace(record, **change), PREPARE), change
