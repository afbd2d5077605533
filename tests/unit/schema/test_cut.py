"""How parameters are divided, held to slices of real tensors."""

import pytest
import torch

from ovtrain.schema.cut import COLUMN, REPLICATED, ROW, Cut, Part, matrix

SHAPES = {"column": (12, 6), "column3": (12, 6), "row": (4, 6), "bias": (12,), "image": (12, 3, 2)}


def part_of(whole: torch.Tensor, part: Part) -> torch.Tensor:
    rows, columns = matrix(whole.shape)
    flat = whole.reshape(rows, columns)
    picked = [flat[r.start : r.stop] for r in part.rows(rows)]
    across = part.columns(columns)
    return torch.cat(picked)[:, across.start : across.stop].reshape(part.shape(whole.shape))


@pytest.mark.parametrize("of", [1, 2, 4])
@pytest.mark.parametrize("name", ["column", "bias", "image"])
def test_column_parts_joined_are_the_whole(name: str, of: int):
    whole = torch.arange(torch.Size(SHAPES[name]).numel()).view(SHAPES[name])
    parts = [part_of(whole, Part(COLUMN, i, of)) for i in range(of)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("of", [1, 2, 3])
def test_row_parts_joined_are_the_whole(of: int):
    whole = torch.arange(24).view(4, 6)
    parts = [part_of(whole, Part(ROW, i, of)) for i in range(of)]
    assert torch.equal(torch.cat(parts, 1), whole)


def test_each_part_has_its_share_of_every_stack():
    whole = torch.arange(12).view(12, 1).expand(12, 6)
    part = part_of(whole, Part(Cut("column", 3), 1, 2))
    assert part[:, 0].tolist() == [2, 3, 6, 7, 10, 11]


@pytest.mark.parametrize(
    "part", [Part(COLUMN, 0, 2), Part(Cut("column", 3), 1, 4), Part(ROW, 3, 4)]
)
def test_a_part_is_read_back_from_its_text(part: Part):
    assert Part.parse(part.text) == part


@pytest.mark.parametrize(
    "text", ["", "7", "column", "row-2-of-2", "replicated-0-of-2", "row-0-of-x"]
)
def test_other_texts_are_no_parts(text: str):
    assert Part.parse(text) is None


def test_what_divides():
    assert COLUMN.divides((12, 6), 4)
    assert not COLUMN.divides((12, 6), 5)
    assert not Cut("column", 3).divides((12, 6), 8)
    assert ROW.divides((5, 6), 3)
    assert not ROW.divides((6, 5), 3)
    assert not ROW.divides((6,), 3)  # a bias is added once
    assert REPLICATED.divides((7,), 3)
    assert (ROW.numel(24, 2), REPLICATED.numel(24, 2)) == (12, 24)
