"""The shard cache: what was read once comes from the local disk, and only if it is right."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.shards.writer import write_source
from ovtrain.data import shard_cache
from ovtrain.data.loader import Loader
from ovtrain.data.shard_cache import ShardCache
from ovtrain.data.shards import ShardReader
from ovtrain.data.tars import TarFiles
from ovtrain.schema.errors import MediaError
from ovtrain.schema.isolated import Child
from ovtrain.schema.manifest import ShardIndex
from ovtrain.schema.sample import IMAGE
from tests.helpers.reading import read_often
from tests.helpers.shards import geometry
from tests.helpers.training import typed_config, world
from tests.unit.data.test_damage import UNDAMAGED
from tests.unit.data.test_damage import write as write_damaged
from tests.unit.data.test_loader import unpacked

SAMPLES = 12


def write(folder: Path, seed: int = 0) -> Path:
    """Pictures of 9,000 random bytes each, in three shards."""
    rng = np.random.default_rng(seed)
    numbers = range(SAMPLES)
    samples = [(f"p{n}", {IMAGE: rng.bytes(9000), "json": b"{}"}) for n in numbers]
    write_source(folder, geometry("image", 1, 28), samples, 4)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write(tmp_path / "shards")


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 2**30)


def read(shards: Path, cache: ShardCache | None, *, from_tars: bool = True) -> list[bytes | None]:
    """Every picture; with ``from_tars`` false the tars are away meanwhile: None where it needs
    them."""
    reader, files = ShardReader(shards), TarFiles(cache)
    away = shards.with_name("away")
    if not from_tars:
        shards.rename(away)
    found: list[bytes | None] = []
    for i in range(len(reader)):
        try:
            found.append(files.read(reader.locate(i)[IMAGE], str(i)))
        except MediaError:
            found.append(None)
    if not from_tars:
        away.rename(shards)
    files.close()
    reader.close()
    return found


def test_what_was_read_once_needs_the_tars_no_more(shards: Path, cache: ShardCache):
    plain = read(shards, None)
    assert read(shards, cache) == plain
    assert read(shards, cache, from_tars=False) == plain


def test_only_what_was_read_takes_room(shards: Path, cache: ShardCache):
    reader, files = ShardReader(shards), TarFiles(cache)
    files.read(reader.locate(2)[IMAGE], "2")
    assert 9000 <= sum(512 * p.stat().st_blocks for p in cache.folder.iterdir()) <= 3 * 4096 + 4096
    files.close()
    reader.close()


@pytest.mark.parametrize("kind", ["flipped", "cut", "zeros", "noise", "empty", "a folder"])
def test_damage_in_the_cache_is_read_from_the_tars_and_mended(shards, cache, kind: str):
    plain = read(shards, cache)
    for path in cache.folder.iterdir():
        data, rng = path.read_bytes(), np.random.default_rng(0)
        new = {
            "flipped": bytes(b ^ 4 for b in data),
            "cut": data[: len(data) // 2],
            "zeros": bytes(len(data)),
            "noise": rng.bytes(len(data)),
        }.get(kind, b"")
        path.write_bytes(new)
        if kind == "a folder":
            path.unlink()
            path.mkdir()
    assert read(shards, cache) == plain
    assert read(shards, cache, from_tars=False) == (
        [None] * SAMPLES if kind == "a folder" else plain
    )


def test_other_shards_under_the_same_names_are_not_mixed_up(shards: Path, cache: ShardCache):
    read(shards, cache)
    shutil.rmtree(shards)
    write(shards, seed=1)
    new = read(shards, None)
    assert read(shards, cache) == new
    assert read(shards, cache, from_tars=False) == new


def test_a_full_cache_keeps_what_it_has_and_says_so_once(shards: Path, tmp_path: Path, caplog):
    small = ShardCache(tmp_path / "cache", 40_000)
    with caplog.at_level(logging.WARNING):
        plain = read(shards, small)
        assert read(shards, small) == plain
    assert len([r for r in caplog.records if "takes no more: it is full" in r.message]) == 1
    held = sum(512 * path.stat().st_blocks for path in small.folder.iterdir())
    assert 20_000 < held <= 40_000 + 4096
    kept = read(shards, small, from_tars=False)
    assert 2 <= sum(data is not None for data in kept) <= 4
    assert all(data in (None, right) for data, right in zip(kept, plain, strict=True))


def test_a_disk_without_space_costs_no_sample(shards: Path, cache: ShardCache, monkeypatch, caplog):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shard_cache.os, "pwrite", full)
    assert read(shards, cache) == read(shards, None)
    assert len([r for r in caplog.records if "No space left" in r.message]) == 1


def test_a_folder_that_cannot_be_made_costs_no_sample(shards: Path, tmp_path: Path, caplog):
    (tmp_path / "file").write_bytes(b"")
    assert read(shards, ShardCache(tmp_path / "file" / "cache", 2**30)) == read(shards, None)
    assert len([r for r in caplog.records if "takes no more" in r.message]) == 1


def test_shards_without_checksums_are_not_kept(shards: Path, cache: ShardCache):
    for path in shards.glob("*.npz"):
        index = ShardIndex.read(path)
        ShardIndex(index.keys, index.offsets, index.sizes).write(path)
    assert read(shards, cache) == read(shards, None)
    assert not cache.folder.exists()


def test_processes_share_it_while_it_is_damaged(shards: Path, tmp_path: Path):
    cache, rng = tmp_path / "cache", np.random.default_rng(9)
    children = [Child(read_often, (), timeout_s=60) for _ in range(2)]
    for seed, child in enumerate(children):
        child.send((shards, cache, seed))
    while not all(child.start().poll(0.002) for child in children):
        for path in cache.glob("*.tar"):
            with open(path, "r+b") as handle:
                handle.seek(int(rng.integers(max(path.stat().st_size, 1))))
                handle.write(rng.bytes(100))
    assert [child.receive() for child in children] == [0, 0]
    for child in children:
        child.stop()


def test_the_loader_gives_the_same_with_it(tmp_path: Path):
    write_damaged(tmp_path, {"video": UNDAMAGED, "image": UNDAMAGED}, 8)
    found = []
    for overrides in ([], [f"data.shard_cache={tmp_path / 'cache'}", "data.workers=1"]):
        loader = Loader(typed_config(tmp_path, *overrides, global_batch=4), world())
        found.append([unpacked(m) for _ in range(4) for m in next(loader).micro])
        loader.close()
    assert found[0] == found[1]
    assert len(list((tmp_path / "cache").iterdir())) == 2
