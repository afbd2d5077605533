"""A write is wholly there or not there."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from ovtrain.schema.atomic import atomic_open, file_sha256, write_json


def test_a_clean_exit_replaces_the_file(tmp_path: Path):
    path = tmp_path / "deep" / "a.txt"
    for text in ("one", "two"):
        with atomic_open(path, "w") as handle:
            handle.write(text)
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_open(path) as handle:
            handle.write(b"half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_sorted_and_ends_with_a_newline(tmp_path: Path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    text = (tmp_path / "a.json").read_text()
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")
    assert json.loads(text) == {"a": [2], "b": 1}


def test_the_hash_is_of_all_bytes(tmp_path: Path):
    data = bytes(range(256)) * 8192  # two reads of a mebibyte
    (tmp_path / "a").write_bytes(data)
    assert file_sha256(tmp_path / "a") == sha256(data).hexdigest()
