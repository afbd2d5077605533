"""What is taken from folders, tars and lists, and what is left out, by name and reason."""

import io
import json
import tarfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_pipelines.inventory.cuts import scene_cuts
from data_pipelines.inventory.media import MediaFile
from data_pipelines.inventory.scan import media_in, scan
from data_pipelines.prepare import prepare
from data_pipelines.shards.verify import verify
from ovtrain.config.prepare import DedupConfig, FilterConfig
from ovtrain.schema.errors import MediaError
from ovtrain.schema.manifest import ShardManifest

from .conftest import PREPARE, write_h264
from .test_prepare import dataset, rows

STILLS = replace(PREPARE, images_per_clip=0)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif)


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, payload in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))


def skipped(out: Path) -> dict[str, str]:
    return {row["file"]: row["reason"] for row in rows(out / "skipped.jsonl")}


def samples(out: Path, kind: str) -> dict[str, dict]:
    return {sample["__key__"]: sample for sample in dataset(out / kind)}


def test_tars_of_img2dataset_give_their_pictures_and_videos(clips: Path, tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    clip = next((clips / "train").glob("*.mp4")).read_bytes()
    tar(
        source / "00000.tar",
        {
            "000000000.jpg": encoded(picture(300, 200)),
            "000000000.json": b'{"caption": "x"}',
            "000000000.txt": b"a caption",
            "000000001.mp4": clip,
            "000000002.jpg": b"no picture",
        },
    )
    tar(source / "00001.tar", {"000010000.png": encoded(picture(90, 200), "PNG")})
    whole = (source / "00001.tar").read_bytes()
    (source / "cut.tar").write_bytes(whole[: len(whole) // 3])
    (source / "noise.tar").write_bytes(bytes(range(256)) * 9)
    assert prepare(source, tmp_path / "out", STILLS)
    out = tmp_path / "out"
    assert samples(out, "video")["000000001"]["mp4"] == clip
    assert set(samples(out, "image")) == {"000000000", "000010000"}
    reasons = {name: reason.split(" (")[0] for name, reason in skipped(out).items()}
    assert reasons == {
        "00000.tar/000000002.jpg": "not a readable picture",
        "cut.tar/000010000.png": "its tar is cut short",
        "cut.tar": "not a readable tar from here on",
        "noise.tar": "not a readable tar from here on",
    }
    for kind in ("video", "image"):
        verify(out / kind)


def test_members_of_tars_are_read_in_place(tmp_path: Path):
    tar(tmp_path / "a.tar", {f"{n}.jpg": encoded(picture(40, 40, n)) for n in range(3)})
    found = list(media_in(tmp_path, "a.tar", {}))
    assert [one.name for one in found] == ["a.tar/0.jpg", "a.tar/1.jpg", "a.tar/2.jpg"]
    with found[1].open(tmp_path) as handle:
        handle.seek(-2, io.SEEK_END)
        assert handle.read() == b"\xff\xd9"  # how a JPEG ends
        handle.seek(0)
        assert handle.read() == encoded(picture(40, 40, 1)) == found[1].read(tmp_path)


def test_pictures_are_reduced_turned_upright_and_kept_where_nothing_is_to_do(tmp_path: Path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    small = encoded(picture(150, 112))
    (source / "small.jpg").write_bytes(small)
    (source / "large.png").write_bytes(encoded(picture(600, 300), "PNG"))
    (source / "turned.jpg").write_bytes(turned(picture(150, 112), 6))
    (source / "cmyk.jpg").write_bytes(encoded(picture(120, 112).convert("CMYK")))
    (source / "transparent.webp").write_bytes(encoded(picture(120, 112).convert("RGBA"), "WEBP"))
    (source / "empty.jpg").write_bytes(b"")
    (source / "half.jpg").write_bytes(small[: len(small) // 2])
    assert prepare(source, out, replace(STILLS, picture_side=112))
    found = samples(out, "image")
    sizes = {key: Image.open(io.BytesIO(one["jpg"])).size for key, one in found.items()}
    assert sizes == {
        "small": (150, 112),
        "large": (224, 112),
        "turned": (112, 150),
        "cmyk": (120, 112),
        "transparent": (120, 112),
    }
    assert found["small"]["jpg"] == small
    meta = json.loads(found["turned"]["json"])
    assert (meta["height"], meta["width"], meta["kind"]) == (150, 112, "image")
    assert skipped(out)["empty.jpg"] == "empty file"
    assert skipped(out)["half.jpg"].startswith("not a readable picture")
    assert ShardManifest.read(out / "image").height == 112
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["pictures"], summary["kept"]) == (5, 1)


def test_derived_keys_do_not_collide(tmp_path: Path):
    """Clips and stills of one file get keys that others could have by their names."""
    source = tmp_path / "in"
    source.mkdir()
    write_h264(source / "a.mp4", 60)
    write_h264(source / "a-c0.mp4", 40)
    (source / "a-c0-f08.png").write_bytes(encoded(picture(120, 120), "PNG"))
    assert prepare(source, tmp_path / "out", replace(PREPARE, clips_per_video=2))
    assert verify(tmp_path / "out/video").samples == 4
    assert verify(tmp_path / "out/image").samples == 9


def numbered(path: Path, codec: str, frames: int, times: list[int] | None = None) -> None:
    """A video that shows its frames' numbers, as bits."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 112, "yuv420p"
        stream.codec_context.gop_size = 50
        for t in range(frames):
            bits = [t >> bit & 1 for bit in range(10)]
            row = np.repeat(np.array(bits, np.uint8) * 200 + 20, 16)
            shown = np.repeat(row[None, :, None], 112, 0).repeat(3, 2)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), "rgb24")
            frame.pts = times[t] if times else t
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def shown(clip: bytes) -> int:
    """The number that the first frame of a centre-cropped clip shows: bits 2 to 7 of it."""
    columns = luma(clip)[0][56].astype(int)  # of 160 the middle 112: columns 24 to 136
    bits = {
        bit: columns[16 * bit - 24 + 4 : 16 * bit - 24 + 12].mean() > 110 for bit in range(2, 8)
    }
    return sum(1 << bit for bit, set_there in bits.items() if set_there)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.ts", "libx264"),
        ("b.ts", "mpeg2video"),
        ("a.mpg", "mpeg2video"),
        ("a.h264", "libx264"),
    ],
)
def test_late_places_show_the_frames_that_they_name(tmp_path: Path, name: str, codec: str):
    """Wherever a container's seeking leads."""
    (tmp_path / "in").mkdir()
    numbered(tmp_path / "in" / name, codec, 420)
    source = listed(tmp_path / "in", f"{name},14,")
    assert prepare(source, tmp_path / "out", STILLS)
    (sample,) = samples(tmp_path / "out", "video").values()
    assert shown(sample["mp4"]) == 350 & 0b11111100


def test_listed_times_hold_where_the_rate_varies(tmp_path: Path):
    """A hundred frames at 25 a second, then one every four of that."""
    (tmp_path / "in").mkdir()
    times = [t if t < 100 else 100 + 4 * (t - 100) for t in range(200)]
    numbered(tmp_path / "in/a.mp4", "libx264", 200, times)
    source = listed(tmp_path / "in", "a.mp4,10,")  # 250 / 25: frame 100 + (250 - 100) / 4
    assert prepare(source, tmp_path / "out", STILLS)
    (sample,) = samples(tmp_path / "out", "video").values()
    assert abs(shown(sample["mp4"]) - 136) <= 4


def test_pictures_of_all_depths_show_what_is_on_them(tmp_path: Path):
    """Sixteen bits are not clipped, and what is see-through lies on white."""
    source = tmp_path / "in"
    source.mkdir()
    deep = np.full((112, 112), 128 * 256, np.uint16)
    Image.fromarray(deep).save(source / "deep.png")
    clear = np.zeros((112, 112, 4), np.uint8)
    clear[40:60, 40:60, 3] = 255
    Image.fromarray(clear).save(source / "clear.png")
    Image.fromarray(np.full((112, 112), 0.5, np.float32)).save(source / "float.tif")
    assert prepare(source, tmp_path / "out", STILLS)
    found = {
        key: np.asarray(Image.open(io.BytesIO(one["jpg"])))
        for key, one in samples(tmp_path / "out", "image").items()
    }
    assert set(found) == {"deep", "clear"}
    assert abs(int(found["deep"].mean()) - 128) <= 1
    assert found["clear"][10, 10].min() > 250
    assert found["clear"][50, 50].max() < 5
    assert "float.tif" in skipped(tmp_path / "out")


def listed(folder: Path, *lines: str, head: str = "path,start,end") -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def starts(out: Path) -> dict[str, int]:
    found = samples(out, "video")
    return {key: json.loads(one["json"])["start"] for key, one in found.items()}


def test_a_list_says_where_clips_begin(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    write_h264(tmp_path / "sub/a.mp4", frames=120)  # 25 frames a second
    write_h264(tmp_path / "b.mp4", frames=60)
    source = listed(
        tmp_path,
        "sub/a.mp4,1.0,,x",
        "b.mp4,,,y",
        "sub/a.mp4,2.4,2.9,z",
        "sub/a.mp4,0:00:03,0:00:04.5,z",
        "sub/a.mp4,100,,late",
        "gone.mp4,1,2,",
        "b.mp4,two,3,",
        "b.mp4,3,2,",
        head="path,start,end,caption",
    )
    assert prepare(source, tmp_path / "out", STILLS)
    found = starts(tmp_path / "out")
    assert found["a-c0"] == 25
    assert found["a-c1"] == 60  # twelve frames, spread over the clip
    assert 75 <= found["a-c2"] <= 112 - PREPARE.frames + 1
    assert 0 <= found["b"] <= 60 - PREPARE.frames
    assert len(found) == 4
    names = skipped(tmp_path / "out")
    assert names["list.csv, line 7"].startswith("bad row (gone.mp4: not a regular file")
    assert "'two' is no time" in names["list.csv, line 8"]
    assert "end 2 is not behind start 3" in names["list.csv, line 9"]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["resampled"] == 1


def test_a_list_without_its_columns_is_refused(tmp_path: Path):
    with pytest.raises(MediaError, match="without the column end, start"):
        scan(listed(tmp_path, "a.mp4", head="path"))
    with pytest.raises(MediaError, match=r"no such folder or \.csv list"):
        scan(tmp_path / "nothing")


def scenes(path: Path, *lengths: int) -> None:
    """Scenes of drifting texture, each of its own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 112, "yuv420p"
        for scene, length in enumerate(lengths):
            wide = np.asarray(picture(160 + length, 112, scene))
            for t in range(length):
                shown = np.ascontiguousarray(wide[:, t : t + 160])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, "rgb24")))
        container.mux(stream.encode())


def test_cuts_are_found_where_scenes_begin(tmp_path: Path):
    scenes(tmp_path / "a.mp4", 50, 20, 45)
    assert scene_cuts(tmp_path, MediaFile("a.mp4", "a.mp4"), 0.3) == [50, 70]


def test_clips_lie_inside_scenes(tmp_path: Path):
    (tmp_path / "in").mkdir()
    scenes(tmp_path / "in/a.mp4", 50, 20, 45)
    scenes(tmp_path / "in/short.mp4", 14, 20, 10)
    assert prepare(
        tmp_path / "in", tmp_path / "out", replace(STILLS, scene_cuts=0.3, clips_per_video=9)
    )
    found = starts(tmp_path / "out")
    inside = [s for key, s in found.items() if key.startswith("a-")]
    assert len(inside) == 9
    assert all(s + 32 <= 50 or 70 <= s <= 115 - 32 for s in inside)
    # No scene is long enough: the longest, spread over the clip.
    assert {key: s for key, s in found.items() if key.startswith("short")} == {"short": 14}


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ({"min_side": 97}, "smaller than filters.min_side (160 x 96)"),
        ({"max_aspect": 1.5}, "longer than filters.max_aspect (160 x 96)"),
        ({"min_fps": 26}, "below filters.min_fps (25)"),
        ({"max_fps": 24}, "above filters.max_fps (25)"),
        ({"min_seconds": 2}, "below filters.min_seconds (1.6)"),
        ({"max_seconds": 1.5}, "above filters.max_seconds (1.6)"),
    ],
)
def test_filters_leave_out_and_say_why(tmp_path: Path, filters: dict[str, float], reason: str):
    (tmp_path / "in").mkdir()
    write_h264(tmp_path / "in/a.mp4", frames=40)
    with pytest.raises(MediaError, match=f"1 x {reason.split(' (')[0]}"):
        prepare(tmp_path / "in", tmp_path / "out", replace(STILLS, filters=FilterConfig(**filters)))
    assert skipped(tmp_path / "out") == {"a.mp4": reason}


def test_equal_files_are_prepared_once(tmp_path: Path):
    (tmp_path / "in").mkdir()
    write_h264(tmp_path / "in/b.mp4", frames=40)
    data = (tmp_path / "in/b.mp4").read_bytes()
    (tmp_path / "in/a.mp4").write_bytes(data)
    tar(tmp_path / "in/c.tar", {"x.mp4": data, "y.jpg": encoded(picture(120, 120))})
    assert prepare(tmp_path / "in", tmp_path / "out", STILLS)
    assert list(samples(tmp_path / "out", "video")) == ["a"]
    assert rows(tmp_path / "out/duplicates.jsonl") == [
        {"file": "b.mp4", "duplicate_of": "a.mp4", "by": "content"},
        {"file": "c.tar/x.mp4", "duplicate_of": "a.mp4", "by": "content"},
    ]
    every = replace(STILLS, dedup=DedupConfig(exact=False))
    assert prepare(tmp_path / "in", tmp_path / "out", every)
    assert list(samples(tmp_path / "out", "video")) == ["a", "b", "x"]
    assert rows(tmp_path / "out/duplicates.jsonl") == []


def coded(path: Path, frames: int, codec: str, **options: str) -> list[np.ndarray]:
    """A square video of 112 pixels; its decoded luma."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width = stream.height = 112
        stream.pix_fmt = "yuv420p"
        for t in range(frames):
            shown = np.roll(np.asarray(picture(112, 112)), 3 * t, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, "rgb24")))
        container.mux(stream.encode())
    return luma(path.read_bytes())


def luma(video: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(video), "r") as container:
        return [frame.to_ndarray()[:112].copy() for frame in container.decode(video=0)]


def test_native_streams_keep_their_coding(tmp_path: Path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    plain = {"preset": "ultrafast", "bf": "0", "g": "16"}
    frames = coded(source / "long.mp4", 90, "libx264", **plain)
    coded(source / "whole.mp4", 32, "libx264", bf="2", preset="medium")
    coded(source / "reordered.mp4", 60, "libx264", bf="2", preset="medium")
    assert prepare(source, out, replace(STILLS, native=True))
    found = samples(out, "video")
    assert found["whole"]["mp4"] == (source / "whole.mp4").read_bytes()
    start = json.loads(found["long"]["json"])["start"]
    assert start % 16 == 0
    cut = luma(found["long"]["mp4"])
    assert len(cut) == PREPARE.frames
    for shown, expected in zip(cut, frames[start:], strict=False):
        assert np.array_equal(shown, expected)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["passed_through"], summary["transcoded"]) == (2, 1)
    assert summary["origins"] == {"h264-export": 2, "hevc-transcode": 1}
