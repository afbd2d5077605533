import os
import resource
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from ovtrain.schema.errors import LabelError
from ovtrain.schema.features import FeatureStore, Part, write_part, write_store


def parted(folder: Path, sizes: list[int], width: int = 5) -> np.ndarray:
    """A store in parts of ``sizes``; returns all of its rows."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((sum(sizes), width)).astype(np.float16)
    keys = np.arange(sum(sizes), dtype=np.uint64)
    starts = np.cumsum([0, *sizes])
    parts = [
        write_part(folder, f"part-{i:05d}", features[a : a + n], keys[a : a + n])
        for i, (a, n) in enumerate(zip(starts, sizes, strict=False))
    ]
    write_store(folder, parts, "teacher", "print")
    return features


def test_rows_come_back_across_parts(tmp_path: Path):
    features = parted(tmp_path, [3, 0, 4, 1])
    store = FeatureStore(tmp_path)
    assert (len(store), store.width, store.teacher, store.fingerprint) == (8, 5, "teacher", "print")
    assert np.array_equal(store.array(), features)
    for first in range(8):
        for count in range(9 - first):
            assert np.array_equal(store.rows(first, count), features[first : first + count])
    assert np.array_equal(store.take(np.array([0, 2, 3, 4, 7])), features[[0, 2, 3, 4, 7]])
    assert store.take(np.empty(0, np.int64)).shape == (0, 5)
    assert store.keys.tolist() == list(range(8))


def test_a_part_is_there_when_its_description_is(tmp_path: Path):
    assert Part.read(tmp_path, "part-00000") is None
    parted(tmp_path, [2])
    assert Part.read(tmp_path, "part-00000") == FeatureStore(tmp_path).parts[0]


def test_identity_follows_the_contents(tmp_path: Path):
    rows, keys = np.ones((3, 2)), np.arange(3, dtype=np.uint64)
    made = [
        FeatureStore.write(tmp_path / n, x, keys, "t", "p").identity
        for n, x in {"a": rows, "b": rows, "c": 2 * rows}.items()
    ]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("name", ["part-00001.npy", "part-00001.keys.npy"])
def test_verify_names_the_file_with_a_flipped_bit(tmp_path: Path, name: str):
    parted(tmp_path, [3, 4])
    store = FeatureStore(tmp_path)
    store.verify()
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LabelError, match=name.replace(".", r"\.")):
        store.verify()


@pytest.mark.parametrize("damage", [b"", b"not numpy", None])
def test_a_cut_or_foreign_array_is_named_when_the_store_is_opened(tmp_path: Path, damage):
    parted(tmp_path, [3, 4])
    path = tmp_path / "part-00001.npy"
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    with pytest.raises(LabelError, match=r"part-00001\.npy"):
        FeatureStore(tmp_path)


def test_an_array_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path):
    parted(tmp_path, [3, 4])
    store = FeatureStore(tmp_path)
    path = tmp_path / "part-00001.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(LabelError, match="cut short"):
        store.array()


def test_rows_are_read_and_not_mapped(tmp_path: Path):
    parted(tmp_path, [4])
    store = FeatureStore(tmp_path)
    store.rows(0, 4)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_store_that_an_older_version_wrote_is_refused(tmp_path: Path):
    (tmp_path / "store.json").write_text('{"version": 1, "kind": "features", "samples": 2}')
    with pytest.raises(LabelError, match="version=1; allowed: kind=features version=2"):
        FeatureStore(tmp_path)


def test_a_part_is_not_there_when_a_file_of_it_is_cut_or_of_another_form(tmp_path: Path):
    parted(tmp_path, [3, 0])
    part, empty = FeatureStore(tmp_path).parts
    assert part.is_there(tmp_path)
    assert empty.is_there(tmp_path)
    np.save(tmp_path / "part-00000.keys.npy", np.arange(3))  # int64
    assert not part.is_there(tmp_path)
    np.save(tmp_path / "part-00000.keys.npy", np.arange(3, dtype=np.uint64))
    assert part.is_there(tmp_path)
    (tmp_path / "part-00000.npy").write_bytes((tmp_path / "part-00000.npy").read_bytes()[:-1])
    assert not part.is_there(tmp_path)


def test_a_part_keeps_its_writers_stamp_and_what_was_skipped(tmp_path: Path):
    rows, keys = np.ones((2, 3), np.float16), np.arange(2, dtype=np.uint64)
    written = write_part(tmp_path, "part-00000", rows, keys, stamp="of this", skipped=4)
    assert Part.read(tmp_path, "part-00000") == written
    assert (written.stamp, written.skipped) == ("of this", 4)


def test_a_part_that_is_replaced_is_not_described_by_the_old_words(tmp_path: Path, monkeypatch):
    parted(tmp_path, [2])

    def die(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", die)
    rows, keys = np.ones((2, 5), np.float16), np.arange(2, dtype=np.uint64)
    with pytest.raises(KeyboardInterrupt):
        write_part(tmp_path, "part-00000", rows, keys)
    assert Part.read(tmp_path, "part-00000") is None


def test_verify_reads_the_files_beside_the_parts(tmp_path: Path):
    parted(tmp_path, [2])
    (tmp_path / "table.npy").write_bytes(b"table")
    digest = sha256(b"table").hexdigest()
    parts = FeatureStore(tmp_path).parts
    write_store(tmp_path, parts, "teacher", "print", {"table.npy": digest})
    store = FeatureStore(tmp_path)
    store.verify()
    assert store.files == {"table.npy": digest}
    (tmp_path / "table.npy").unlink()
    with pytest.raises(LabelError, match=r"table\.npy: missing"):
        store.verify()


def test_a_store_of_more_parts_than_files_may_be_open_is_read(tmp_path: Path):
    features = parted(tmp_path, [1] * 80)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(list(Path("/proc/self/fd").iterdir()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, limits[1]))
        store = FeatureStore(tmp_path)
        assert np.array_equal(store.array(), features)
        store.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_store_that_nobody_holds_is_closed(tmp_path: Path):
    parted(tmp_path, [1] * 5)

    def opened() -> int:
        files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        return sum(str(tmp_path) in file for file in files)

    store = FeatureStore(tmp_path)
    assert opened() == 5
    other = FeatureStore(tmp_path)
    store.close()
    assert opened() == 5
    assert other.rows(0, 5).shape == (5, 5)
    del other
    assert opened() == 0
