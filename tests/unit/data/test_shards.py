"""Random access into plain WebDataset tars."""

import gc
import warnings
from pathlib import Path
from typing import Any

import pytest
import webdataset

from ovtrain.data.shards import ShardReader
from ovtrain.schema.errors import ManifestError, MediaError
from ovtrain.schema.manifest import ShardIndex
from ovtrain.schema.sample import CLIP, ENERGY, IMAGE, META
from tests.helpers.shards import write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, "video", 7, shards=3)
    return folder


def read_by_webdataset(folder: Path) -> list[dict[str, Any]]:
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the last tar open
        samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
        gc.collect()
    return samples


def test_members_equal_what_webdataset_reads(folder: Path):
    reader = ShardReader(folder)
    samples = read_by_webdataset(folder)
    assert [s["__key__"] for s in samples] == reader.keys
    for i, sample in enumerate(samples):
        for member in (CLIP, ENERGY, META):
            assert reader.member(i, member) == sample[member]
    reader.close()


def test_samples_are_numbered_in_shard_order_and_named(folder: Path):
    reader = ShardReader(folder)
    assert len(reader) == 7
    assert reader.name(0) == "video-000000.tar/video-0-0000"
    assert reader.name(6) == "video-000002.tar/video-0-0006"
    assert reader.meta(6).key == "video-0-0006"
    assert reader.energy(3).shape == (8, 2, 2)
    reader.close()


def test_indexes_of_other_samples_are_refused(tmp_path: Path):
    write_shards(tmp_path, "image", 4)
    path = tmp_path / "image-000000.npz"
    index = ShardIndex.read(path)
    ShardIndex(["x", "y"], index.offsets, index.sizes).write(path)
    with pytest.raises(ManifestError, match="hold other sample keys"):
        ShardReader(tmp_path)


def test_a_missing_shard_is_named_at_the_start(tmp_path: Path):
    write_shards(tmp_path, "image", 4)
    (tmp_path / "image-000001.tar").unlink()
    with pytest.raises(ManifestError, match=r"image-000001\.tar is missing; .*ovtrain prepare"):
        ShardReader(tmp_path)


def test_a_member_beyond_the_end_is_a_media_error(tmp_path: Path):
    write_shards(tmp_path, "image", 4)
    tar = tmp_path / "image-000001.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    reader = ShardReader(tmp_path, check=False)
    with pytest.raises(MediaError, match=r"image-000001\.tar/image-0-0002: cut short \(jpg has "):
        reader.member(2, IMAGE)
    assert reader.member(0, IMAGE)
    reader.close()
