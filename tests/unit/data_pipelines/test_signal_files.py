"""``ovtrain codec dump`` and ``select``: what the files hold, on what grid, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.signal_files import NO_POC, NpzWriter, dump, select_patches
from launch.cli import run
from ovtrain.codec import Want, open_signals
from ovtrain.codec.energy import measure_clip
from ovtrain.codec.selection import select
from ovtrain.config.prepare import EnergyConfig
from ovtrain.schema.errors import CodecError, ConfigError
from ovtrain.schema.grid import PatchGrid
from tests.unit.codec.pictures import encode, moving_square, pan

X265 = {"x265-params": "log-level=error:pools=none:bframes=2:keyint=8:min-keyint=8:ctu=32"}


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode(moving_square(20, step=(2, 1)), "libx265", X265))
    return path


def test_a_dump_holds_every_frame(video: Path, tmp_path: Path):
    said = dump(video, tmp_path / "new" / "f.npz")
    assert "20 frames, hevc-bitstream" in said
    found = np.load(tmp_path / "new" / "f.npz", allow_pickle=False)
    with open_signals(video, want=Want(bits=True)) as source:
        frames = list(source)
    assert found["signal_origin"] == "hevc-bitstream"
    assert "".join(found["frame_type"]) == "".join(s.type for s in frames)
    for name, field in {"pts": "pts", "poc": "poc", "packet_bytes": "packet_bytes"}.items():
        assert found[name].tolist() == [getattr(s, field) for s in frames]
    assert found["parse_ok"].all()
    for name, field in {"motion": "motion", "ref_delta": "reference_delta"}.items():
        assert np.array_equal(found[name], np.stack([getattr(s, field) for s in frames]))
    assert np.array_equal(found["residual"], np.stack([s.residual for s in frames]))
    assert np.array_equal(found["ctb_bits"], np.stack([s.ctb_bits for s in frames]))
    assert found["ctb_bits"].shape == (20, 4, 4)
    assert [found[k].dtype.str for k in ("motion", "ref_delta", "residual", "ctb_bits")] == [
        "<i2", "<i2", "<i2", "<u4",
    ]  # fmt: skip


def test_a_dump_of_a_window(video: Path, tmp_path: Path):
    dump(video, tmp_path / "all.npz")
    dump(video, tmp_path / "part.npz", start=9, stop=13)
    whole, part = np.load(tmp_path / "all.npz"), np.load(tmp_path / "part.npz")
    assert part["frame_ids"].tolist() == [9, 10, 11, 12]
    for name in ("pts", "poc", "motion", "residual", "ctb_bits"):
        assert np.array_equal(part[name], whole[name][9:13])


def test_a_dump_of_an_export_says_what_it_does_not_know(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode(moving_square(12), "libx264", {"bf": "0", "refs": "4", "g": "12"}))
    said = dump(path, tmp_path / "f.npz")
    assert "h264-export" in said
    assert "choose among several references" in said
    found = np.load(tmp_path / "f.npz")
    assert (found["poc"] == NO_POC).all()
    assert found["ctb_bits"].shape == (12, 0, 0)
    assert found["several_references"].max() == 1


def test_rows_wait_outside_of_memory(tmp_path: Path):
    writer = NpzWriter(tmp_path)
    rows = np.arange(60, dtype=np.int16).reshape(5, 3, 4)
    for row in rows:
        writer.append("rows", row)
    assert list(tmp_path.iterdir()) == []  # without a name
    with pytest.raises(CodecError, match=r"rows of frame 5: int16 \(3, 5\) behind int16 \(3, 4\)"):
        writer.append("rows", np.zeros((3, 5), np.int16))
    writer.write(tmp_path / "f.npz", one=np.array("x"))
    found = np.load(tmp_path / "f.npz")
    assert np.array_equal(found["rows"], rows)
    assert found["one"] == "x"


def test_selection_is_that_of_the_library(video: Path, tmp_path: Path):
    out = tmp_path / "s.npz"
    said = select_patches(video, out, 100, frames=8, size=112, start=2)
    assert "100 of 512 patches of 8 frames out of 18, hevc-bitstream" in said
    found = np.load(out)
    frame_ids = np.rint(np.linspace(0, 17, 8)).astype(int)
    with open_signals(video, start=2) as source:
        clip = measure_clip(
            source, PatchGrid(8, 8, 8), EnergyConfig(), frame_indices=frame_ids.tolist()
        )
    assert np.array_equal(found["frame_ids"], 2 + frame_ids)
    assert found["energy"].dtype == np.uint16
    assert np.array_equal(found["energy"], clip.map)
    flat = np.ravel_multi_index(tuple(found["positions"].T.astype(int)), clip.map.shape)
    assert np.array_equal(flat, select(clip.map, 100).flat)
    assert found["positions"].dtype == np.int16
    assert (np.diff(flat) > 0).all()


def test_a_short_video_gives_all_its_frames(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode(pan(9), "libx265", X265))
    select_patches(path, tmp_path / "s.npz", 300)
    found = np.load(tmp_path / "s.npz")
    assert found["frame_ids"].tolist() == list(range(9))
    assert found["energy"].shape == (9, 16, 16)


def test_what_is_refused(video: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"token budget=20.*allowed: 256"):
        select_patches(video, tmp_path / "s.npz", 20)
    with pytest.raises(ConfigError, match="frames=0"):
        select_patches(video, tmp_path / "s.npz", 256, frames=0)
    assert not (tmp_path / "s.npz").exists()


def test_the_commands(video: Path, tmp_path: Path, capfd):
    out = str(tmp_path / "f.npz")
    assert run(["codec", "dump", str(video), "--out", out, "--start", "4", "--stop", "6"]) == 0
    assert "2 frames, hevc-bitstream" in capfd.readouterr().out
    window = ["codec", "select", str(video), "--out", out, "--budget", "256", "--size", "112"]
    assert run([*window, "--mode", "per_frame", "normalise=clip"]) == 0
    assert "256 of 1280 patches of 20 frames" in capfd.readouterr().out
    assert run([*window, "normalize=clip"]) == 2
    assert "did you mean normalise" in capfd.readouterr().out
    assert run(["codec", "dump", str(tmp_path / "none.mp4"), "--out", out]) == 2
    assert "No such file" in capfd.readouterr().out
    assert run(["codec", "dump", str(video), "--out", out, "--start", "20"]) == 2
    assert "start=20 in a video of 20 frames" in capfd.readouterr().out
