"""Divided parameters that are not whole, or more than that: told by name, never guessed."""

from pathlib import Path

import pytest
import torch

from ovtrain.checkpoint.encoder_shards import EncoderReader, file_name
from ovtrain.checkpoint.tensor_files import write_tensors
from ovtrain.schema.cut import COLUMN, Part
from ovtrain.schema.errors import CheckpointError

SHAPE = torch.Size((8, 6))


def reader_of(folder: Path, *files: dict[str, int]) -> EncoderReader:
    """Of files that hold so many entries under such keys; {} for one that is lost."""
    for rank, lengths in enumerate(files):
        tensors = {f"param/{key}": torch.zeros(length) for key, length in lengths.items()}
        if tensors:
            write_tensors(folder / file_name(rank, len(files)), tensors)
    return EncoderReader(folder)


def test_a_lost_part_is_named_with_its_file(tmp_path: Path):
    reader = reader_of(tmp_path, {"w/0/column-0-of-2": 24}, {})
    assert reader.size("w") == 48
    with pytest.raises(
        CheckpointError,
        match=r"param/w, part column-1-of-2, are not whole: 0 is missing "
        r"\(not here: encoder-00001-of-00002.safetensors\); put the missing",
    ):
        reader.whole("param", {"w": SHAPE})
    own = reader.read_piece("param", "w", SHAPE, Part(COLUMN, 0, 2), 3, 24)
    assert len(own) == 21
    with pytest.raises(CheckpointError, match=r"part column-1-of-2, are not whole"):
        reader.read_piece("param", "w", SHAPE, Part(COLUMN, 1, 2), 3, 5)
    with pytest.raises(CheckpointError, match=r"part column-1-of-2, are not whole"):
        reader.read_piece("param", "w", SHAPE, Part(COLUMN, 3, 4), 0, 5)


@pytest.mark.parametrize(
    ("lengths", "missing"),
    [
        ({"w/0/row-0-of-2": 10, "w/11/row-0-of-2": 13, "w/0/row-1-of-2": 24}, "row-0-of-2.* 10 is"),
        ({"w/0/row-0-of-2": 23, "w/0/row-1-of-2": 24}, "row-0-of-2.* 23 is missing"),
        ({"w/1/row-1-of-2": 23, "w/0/row-0-of-2": 24}, "row-1-of-2.* 0 is missing"),
    ],
)
def test_a_lost_range_of_a_part_is_named(tmp_path: Path, lengths: dict[str, int], missing: str):
    reader = reader_of(tmp_path, lengths)
    with pytest.raises(CheckpointError, match=f"param/w, part {missing}"):
        reader.whole("param", {"w": SHAPE})


def test_lost_ends_of_all_parts_are_no_smaller_encoder(tmp_path: Path):
    reader = reader_of(tmp_path, {"w/0/column-0-of-2": 20}, {"w/0/column-1-of-2": 20}, {}, {})
    with pytest.raises(
        CheckpointError,
        match=r"first difference: w, 40 entries instead of 48\) \(not here: "
        r"encoder-00002-of-00004.safetensors, encoder-00003-of-00004.safetensors\); put missing",
    ):
        reader.whole("param", {"w": SHAPE})


def test_moments_that_are_lost_are_named(tmp_path: Path):
    reader = reader_of(tmp_path, {"w/0/column-0-of-2": 24, "w/0/column-1-of-2": 24})
    with pytest.raises(CheckpointError, match="holds no first/w; put the missing"):
        reader.read_piece("first", "w", SHAPE, Part(COLUMN, 0, 2), 0, 3)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"w/0/row-0-of-2": 24}, r"row-0-of-2 \(without row-1-of-2\)"),
        (
            {"w/0/column-2-of-4": 12, "w/0/column-3-of-4": 12},
            r"column-2-of-4, column-3-of-4 \(without column-0-of-4, column-1-of-4\)",
        ),
        ({"w/24": 24}, "whole"),
        ({"w/0": 48}, "whole"),
    ],
)
def test_two_divisions_of_one_parameter_are_not_put_together(
    tmp_path: Path, other: dict[str, int], told: str
):
    with pytest.raises(
        CheckpointError,
        match=r"param/w in several divisions: column-0-of-2 \(without column-1-of-2\); " + told,
    ):
        reader_of(tmp_path, {"w/0/column-0-of-2": 24}, other)


@pytest.mark.parametrize("text", ["", "/column-0-of-2"])
@pytest.mark.parametrize("start", [0, 5, 23])
def test_entries_held_twice_are_refused(tmp_path: Path, text: str, start: int):
    with pytest.raises(
        CheckpointError,
        match=rf"encoder-00001-of-00002.safetensors: holds param/w/{start}{text}, of which "
        rf"encoder-00000-of-00002.safetensors holds entries as param/w/0{text}; remove",
    ):
        reader_of(tmp_path, {f"w/0{text}": 24}, {f"w/{start}{text}": 24})


def test_an_empty_range_holds_nothing_twice(tmp_path: Path):
    reader = reader_of(tmp_path, {"w/0": 48, "w/7": 0, "v/0": 0})
    shapes = {"v": torch.Size((0, 3)), "w": SHAPE}
    assert {name: t.shape for name, t in reader.whole("param", shapes).items()} == shapes


def test_parameters_may_be_divided_differently(tmp_path: Path):
    files = {"w/0/column-0-of-2": 24, "w/0/column-1-of-2": 24}, {"v/0": 48}, {"u/0/row-0-of-1": 48}
    read = reader_of(tmp_path, *files).whole("param", dict.fromkeys("uvw", SHAPE))
    assert read.keys() == {"u", "v", "w"}


def test_a_division_that_does_not_fit_is_another_encoder(tmp_path: Path):
    lengths = {"w/0/row-0-of-4": 12, "w/0/row-1-of-4": 12, "w/0/row-3-of-4": 12}
    with pytest.raises(
        CheckpointError,
        match=r"param/w as row-0-of-4, row-1-of-4, row-3-of-4 \(without row-2-of-4\), but a "
        r"parameter of shape \(8, 6\) does not divide so; use the model.preset",
    ):
        reader_of(tmp_path, lengths).whole("param", {"w": SHAPE})


@pytest.mark.parametrize(
    "key",
    ["w/0/column-2-of-2", "w/0/column0-0-of-2", "w/0/row", "w/0/", "w/-1", "w", "w/0/row-0-of-2/0"],
)
def test_other_keys_are_no_encoders(tmp_path: Path, key: str):
    with pytest.raises(CheckpointError, match=rf"holds param/{key}, which is no encoder's"):
        reader_of(tmp_path, {key: 4})
