"""Manifests notice every file that is missing, short or exchanged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ovtrain.schema.errors import ManifestError
from ovtrain.schema.manifest import MANIFEST, ShardIndex, ShardManifest, fingerprint
from tests.helpers.shards import write_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path, "image", 6, shards=3)
    return tmp_path


def test_what_is_written_is_read(folder: Path):
    manifest = ShardManifest.read(folder)
    again = replace(manifest, source="other")
    again.write(folder)
    assert ShardManifest.read(folder) == again
    assert manifest.samples == 6
    manifest.check_files(folder, hashes=True)


def test_all_faults_are_named_at_once(folder: Path):
    manifest = ShardManifest.read(folder)
    first, second, third = (folder / shard.name for shard in manifest.shards)
    first.unlink()
    second.write_bytes(second.read_bytes()[:-512])
    third.with_suffix(".npz").unlink()
    with pytest.raises(ManifestError) as caught:
        manifest.check_files(folder)
    message = str(caught.value)
    assert f"{first.name} is missing" in message
    assert f"{second.name} has " in message
    assert f"{third.with_suffix('.npz').name} is missing" in message
    assert "ovtrain prepare" in message


def test_a_changed_byte_needs_the_hash(folder: Path):
    manifest = ShardManifest.read(folder)
    tar = folder / manifest.shards[1].name
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    manifest.check_files(folder)
    with pytest.raises(ManifestError, match="another sha256"):
        manifest.check_files(folder, hashes=True)


def test_an_empty_folder_says_what_to_do(tmp_path: Path):
    with pytest.raises(ManifestError, match=r"no shard manifest here; .*data\.sources"):
        ShardManifest.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "manifest version 9; allowed: 1"),
        ({"kind": "audio"}, "kind=audio; allowed: video, image"),
        ({"shards": [{"nam": 1}]}, "not a shard manifest"),
    ],
)
def test_other_manifests_are_refused(folder: Path, change: dict, message: str):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ManifestError, match=message):
        ShardManifest.read(folder)


def test_text_that_is_no_json_is_refused(folder: Path):
    (folder / MANIFEST).write_text("{")
    with pytest.raises(ManifestError, match="not a shard manifest"):
        ShardManifest.read(folder)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not a zip", None])
def test_a_damaged_index_is_named(folder: Path, data: bytes | None):
    path = next(folder.glob("*.npz"))
    path.write_bytes(path.read_bytes()[:-100] if data is None else data)
    with pytest.raises(ManifestError, match=path.name):
        ShardIndex.read(path)


def test_the_fingerprint_depends_on_keys_and_order():
    keys = ["a", "b", "c"]
    assert fingerprint(keys) == fingerprint(list(keys))
    assert len({fingerprint(keys), fingerprint(["b", "a", "c"]), fingerprint(["ab", "c"])}) == 3
