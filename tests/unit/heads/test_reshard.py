"""Head rows by class range: any range from any files, any number of ranks from any other."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ovtrain.heads.reshard import file_name, read_rows, reshard, saved_ranges
from ovtrain.schema.errors import CheckpointError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Rows 0..100 of head ``a-b`` in three uneven files, beside another head's."""
    rows = torch.arange(100.0)[:, None].repeat(1, 2)
    for lo, hi in ((0, 33), (33, 34), (34, 100)):
        tensors = {"rows": rows[lo:hi].bfloat16(), "steps": torch.arange(lo, hi)}
        save_file(tensors, tmp_path / file_name("a-b", lo, hi))
    save_file({"rows": -rows}, tmp_path / file_name("b", 0, 100))
    return tmp_path


@pytest.mark.parametrize(("lo", "hi"), [(0, 100), (0, 50), (20, 34), (33, 34), (99, 100), (40, 40)])
def test_any_range_of_rows_is_read(shards: Path, lo: int, hi: int):
    found = read_rows(shards, "a-b", lo, hi)
    if lo == hi:
        assert found == {}
    else:
        assert found["rows"][:, 0].tolist() == list(range(lo, hi))
        assert found["steps"].tolist() == list(range(lo, hi))


def test_resharding_there_and_back_keeps_every_bit(shards: Path, tmp_path: Path):
    before = read_rows(shards, "a-b", 0, 100)
    folder = shards
    for ranks in (1, 7, 128, 4):
        out = tmp_path / f"ranks-{ranks}"
        reshard(folder, "a-b", 100, ranks, out)
        assert len(saved_ranges(out, "a-b")) == min(ranks, 100)
        folder = out
    after = read_rows(folder, "a-b", 0, 100)
    assert [(lo, hi) for lo, hi, _ in saved_ranges(folder, "a-b")] == [
        (0, 25),
        (25, 50),
        (50, 75),
        (75, 100),
    ]
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor)
        assert after[name].dtype == tensor.dtype


def test_rows_that_no_file_holds_are_an_error(shards: Path):
    (shards / file_name("a-b", 33, 34)).unlink()
    with pytest.raises(CheckpointError) as caught:
        read_rows(shards, "a-b", 0, 100)
    assert "rows 0..100 of head a-b are not whole: the files hold 0..33, 34..100" in str(
        caught.value
    )


def test_rows_that_two_files_hold_are_an_error(shards: Path):
    save_file({"rows": torch.zeros(10, 2)}, shards / file_name("a-b", 30, 40))
    with pytest.raises(CheckpointError, match="not whole"):
        read_rows(shards, "a-b", 0, 100)


def test_a_damaged_file_is_named(shards: Path):
    path = shards / file_name("a-b", 34, 100)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"000000034-000000100\.safetensors: unreadable"):
        read_rows(shards, "a-b", 0, 100)
