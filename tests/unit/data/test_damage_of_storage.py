"""Tars and indexes that are not what they were: named where it is one sample's matter, refused at
the start where it is the source's."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.shards.writer import write_source
from ovtrain.data.loader import Loader
from ovtrain.data.shards import ShardReader
from ovtrain.data.tars import Member, TarFiles
from ovtrain.schema.errors import ManifestError, MediaError
from ovtrain.schema.isolated import category
from ovtrain.schema.manifest import MANIFEST, ShardIndex
from ovtrain.schema.sample import CLIP, ENERGY, IMAGE, key_hash
from tests.helpers.damage import FRAMES, SIZE, payloads
from tests.helpers.shards import geometry
from tests.helpers.training import typed_config, world

PER_SHARD = 2
ARRAYS = ("keys", "offsets", "sizes", "crcs")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven shards of two pictures each."""
    folder = tmp_path_factory.mktemp("sound")
    pictures = [(f"p{number:02d}", payloads("image", number)) for number in range(14)]
    write_source(folder / "image", geometry("image", 1, SIZE), pictures, PER_SHARD)
    clips = [(f"c{number:02d}", payloads("video", number)) for number in range(4)]
    write_source(folder / "video", geometry("video", FRAMES, SIZE), clips, PER_SHARD)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    return tmp_path


def tar(folder: Path, number: int, kind: str = "image") -> Path:
    return folder / kind / f"{kind}-{number:06d}.tar"


def edit(path: Path, **changed) -> None:
    """Rewrite an index with changed arrays: each a function of the old one."""
    index = ShardIndex.read(path.with_suffix(".npz"))
    values = {name: change(getattr(index, name)) for name, change in changed.items()}
    ShardIndex(**{**vars(index), **values}).write(path.with_suffix(".npz"))


def test_what_happens_to_tars_while_they_are_read_costs_their_samples(folder: Path):
    sources = [{"name": "image", "shards": str(folder / "image")}]
    config = typed_config(folder, f"data.sources={sources}", "data.workers=2", global_batch=2)
    loader = Loader(config, world())
    payload = ShardIndex.read(tar(folder, 5).with_suffix(".npz")).offsets[1, 0]
    data = {n: tar(folder, n).read_bytes() for n in range(7)}
    for n in range(6):
        tar(folder, n).unlink()
    tar(folder, 0).write_bytes(data[0][:700])
    tar(folder, 2).symlink_to("/proc/self/mem")  # whose first pages answer EIO
    tar(folder, 3).mkdir()
    tar(folder, 4).write_bytes(bytes(len(data[4])))
    flipped = bytearray(data[5])
    flipped[payload + 300] ^= 1
    tar(folder, 5).write_bytes(flipped)
    bad = [b for _ in range(7) for b in next(loader).bad]
    loader.close()
    assert len({b.name for b in bad}) == len(bad)
    assert Counter((b.name[6:12], category(b.reason)) for b in bad) == {
        ("000000", "cut short"): 2,
        ("000001", "storage error"): 2,
        ("000002", "storage error"): 2,
        ("000003", "storage error"): 2,
        ("000004", "index is wrong"): 2,
        ("000005", "checksum differs"): 1,
    }


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("offsets", lambda a: a + 10**12),
        ("offsets", lambda a: -a),
        ("offsets", lambda a: a * 0),
        ("offsets", lambda a: a * 0 + 512 * 4),
        ("offsets", lambda a: a + 512),
        ("offsets", lambda a: a[::-1]),
        ("offsets", lambda a: a[:, ::-1]),
        ("offsets", lambda a: np.full_like(a, np.iinfo(np.int64).max)),
        ("offsets", lambda a: np.full_like(a, np.iinfo(np.int64).min)),
        ("sizes", lambda a: a + 10**15),
        ("sizes", lambda a: -a),
        ("sizes", lambda a: a * 0),
        ("sizes", lambda a: a + 1),
        ("sizes", lambda a: np.full_like(a, np.iinfo(np.int64).max)),
    ],
)
def test_places_in_a_wrong_index_are_not_taken_for_the_sample(folder: Path, name, change):
    edit(tar(folder, 1), **{name: change})
    reader = ShardReader(folder / "image")
    for i in (2, 3):
        with pytest.raises(MediaError, match=rf"image-000001\.tar/p0{i}: index is wrong"):
            reader.member(i, IMAGE)
    assert reader.member(0, IMAGE)
    reader.close()


def test_samples_swapped_within_an_index_are_found_by_their_tar(folder: Path):
    """Offsets, sizes and checksums fit each other: only the tar's own names tell."""
    turned = dict.fromkeys(("offsets", "sizes", "crcs"), lambda a: a[::-1])
    edit(tar(folder, 0, "video"), **turned)
    reader = ShardReader(folder / "video")
    for member in (CLIP, ENERGY):
        with pytest.raises(MediaError, match=r"index is wrong \(.* is 'c01\."):
            reader.member(0, member)
    reader.close()


def test_a_flipped_bit_is_found_wherever_it_is(folder: Path):
    path = tar(folder, 0, "video")
    data, index = path.read_bytes(), ShardIndex.read(path.with_suffix(".npz"))
    reader = ShardReader(folder / "video")
    rng = np.random.default_rng(0)
    for column, member in enumerate((CLIP, ENERGY)):
        start, size = int(index.offsets[0, column]), int(index.sizes[0, column])
        for at in rng.integers(start, start + size, 50).tolist():
            path.write_bytes(
                data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
            )
            with pytest.raises(MediaError, match=f"checksum differs .{member}"):
                reader.member(0, member)
    reader.close()


def test_shards_without_checksums_are_read_as_they_are(folder: Path):
    for number in range(2):
        edit(tar(folder, number, "video"), crcs=lambda _: None)
    reader = ShardReader(folder / "video")
    whole = [reader.member(i, CLIP) for i in range(4)]
    reader.close()
    assert whole == [payloads("video", i)[CLIP] for i in range(4)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"keys": lambda k: ["x", *k[1:]]}, "hold other sample keys"),
        ({"keys": lambda k: k[::-1]}, "hold other sample keys"),
        ({"keys": lambda k: k[:1]}, "offsets are int64"),
        ({"offsets": lambda a: a[:, :1]}, "sizes are"),
        ({"offsets": lambda a: a.astype(np.float64)}, "offsets are float64"),
        ({"crcs": lambda a: a[:1]}, "crcs are uint32"),
        (dict.fromkeys(ARRAYS, lambda a: a[:1]), "index of 1 samples"),
        (
            dict.fromkeys(("offsets", "sizes", "crcs"), lambda a: np.repeat(a, 2, 1)),
            "index of 2 samples with 4 members",
        ),
    ],
)  # fmt: skip
def test_an_index_of_other_samples_is_refused_at_the_start(folder: Path, changed, message):
    edit(tar(folder, 1), **changed)
    with pytest.raises(ManifestError, match=message):
        ShardReader(folder / "image")


def test_whatever_happens_to_an_index_is_refused_or_named(folder: Path):
    """1 to 20 flipped bits, or a cut: the file's own checksums, or what stands in it, tell."""
    path = tar(folder, 1).with_suffix(".npz")
    good, refused = path.read_bytes(), 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        data = bytearray(good)
        for at in rng.integers(len(data), size=rng.integers(1, 20)).tolist():
            data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data if seed % 3 else data[: int(rng.integers(len(data)))])
        try:
            reader = ShardReader(folder / "image")
        except ManifestError:
            refused += 1
            continue
        assert reader.member(2, IMAGE) == payloads("image", 2)[IMAGE]
        reader.close()
    assert refused > 100


@pytest.mark.parametrize("name", [MANIFEST, "image-000001.tar", "image-000001.npz"])
def test_what_is_missing_or_empty_is_refused_at_the_start(folder: Path, name: str):
    path = folder / "image" / name
    path.write_bytes(b"")
    with pytest.raises(ManifestError, match=name.split(".")[0]):
        ShardReader(folder / "image")
    path.unlink()
    with pytest.raises(ManifestError, match=name.split(".")[0]):
        ShardReader(folder / "image")


def test_whatever_happens_to_a_manifest_is_refused(folder: Path):
    path = folder / "image" / MANIFEST
    good = path.read_bytes()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        data = bytearray(good)
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
        path.write_bytes(data)
        try:
            ShardReader(folder / "image").close()
        except ManifestError:
            continue


def test_long_and_foreign_names_are_no_damage(tmp_path: Path):
    """A header holds the start of such names alone."""
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        for key in ("k" * 120, "ключ", "a/" * 40 + "k", "why?"):
            path = tmp_path / "a.tar"
            with tarfile.open(path, "w", format=form) as archive:
                info = tarfile.TarInfo(f"{key}.jpg")
                info.size = 3
                archive.addfile(info, io.BytesIO(b"abc"))
            with tarfile.open(path) as archive:
                (found,) = archive.getmembers()
            place = (found.offset_data, found.size, None, int(key_hash([key])[0]), "")
            files = TarFiles()
            assert files.read(Member("jpg", str(path), *place), key) == b"abc"
            files.close()
