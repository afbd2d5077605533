"""The encoder from any tensor-parallel degree and any ranges to any other, to the bit."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from ovtrain.checkpoint.encoder_shards import (
    PARTS,
    STEPS,
    EncoderReader,
    Shard,
    cut,
    file_name,
    whole_shards,
)
from ovtrain.checkpoint.restore import restore_encoder
from ovtrain.checkpoint.state import EncoderPart
from ovtrain.checkpoint.tensor_files import TensorFile, write_tensors
from ovtrain.config.model import ModelConfig
from ovtrain.models.encoder import build_encoder
from ovtrain.schema.cut import COLUMN, REPLICATED, ROW, Cut, Part
from tests.helpers.training import world

COLUMN3 = Cut("column", 3)
DEGREES = [1, 2, 3, 4]
Named = dict[str, Tensor]
Cuts = dict[str, Cut]


def random_parameters(seed: int) -> tuple[Named, Cuts]:
    """Of every kind; sizes that 2, 3 and 4 divide where they have to."""
    random, generator = Random(seed), torch.Generator().manual_seed(seed)

    def size(step: int = 1) -> int:
        return step * random.randint(1, 4)

    shapes = {
        "qkv.weight": ((size(12), size()), COLUMN),
        "qkv.bias": ((size(12),), COLUMN),
        "in_proj.weight": ((size(36), size()), COLUMN3),
        "in_proj.bias": ((size(36),), COLUMN3),
        "out_proj.weight": ((size(), size(12)), ROW),
        "image.column": ((size(12), 3, 2, 2), COLUMN),
        "image.row": ((size(), 3, 4, 2), ROW),
        "image.whole": ((size(), 3, 4, 2), REPLICATED),
        "fc1.weight": ((size(), size()), REPLICATED),
        "norm.bias": ((size(),), REPLICATED),
    }
    named = {n: torch.randn(shape, generator=generator) for n, (shape, _) in shapes.items()}
    return named, {name: cut for name, (_, cut) in shapes.items()}


def piece_of(how: Cut, index: int, of: int) -> Part | None:
    return Part(how, index, of) if how.divided and of > 1 else None


def sliced(whole: Tensor, piece: Part | None) -> Tensor:
    """The flattened part, cut by torch alone."""
    if piece is None:
        return whole.flatten()
    if piece.cut.kind == "row":
        return whole.flatten(1).chunk(piece.of, 1)[piece.index].flatten()
    blocks = whole.chunk(piece.cut.stacks)
    return torch.cat([block.chunk(piece.of)[piece.index] for block in blocks]).flatten()


class Owner:
    """Rank (d, t) of D x T: of the parts that tensor rank t holds, and of all that is replicated,
    one range with random ends, as ZeRO leaves to a data rank. The ends follow from ``seed``: they
    are those of all tensor ranks, whose parts are equally large."""

    def __init__(
        self, named: Named, cuts: Cuts, place: tuple[int, int], degrees: tuple[int, int], seed: int
    ) -> None:
        self.named, self.tensor = named, world(place[1], degrees[1])
        pieces = {name: piece_of(cuts[name], place[1], degrees[1]) for name in named}
        shards = [
            Shard(part, name, 0, (scale * sliced(whole, pieces[name])).clone(), pieces[name])
            for scale, part in enumerate(PARTS, 1)
            for name, whole in named.items()
        ]
        total = sum(len(shard.values) for shard in shards)
        inner = Random(seed).choices(range(total + 1), k=degrees[0] - 1)
        ends = [0, *sorted(inner), total]
        self.shards = cut(shards, range(ends[place[0]], ends[place[0] + 1]), total)
        self.counter = torch.tensor(7.0)

    def shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.named.items()}

    def held(self) -> list[Shard]:
        return self.shards

    def owned(self) -> list[Shard]:
        """Of what is replicated, and all tensor ranks hold, each one a share."""
        found = list[Shard]()
        for shard in self.shards:
            size = len(shard.values)
            span = self.tensor.slice_of(size) if shard.piece is None else range(size)
            found += cut([shard], span, size)
        return found

    def steps(self) -> list[Tensor]:
        return [self.counter]

    def restored(self) -> None:
        """Nothing is derived from them."""


def parts(named: Named, cuts: Cuts, data: int, tensor: int, seed: int) -> Iterator[EncoderPart]:
    for rank in range(data * tensor):
        owner = Owner(named, cuts, divmod(rank, tensor), (data, tensor), seed)
        yield EncoderPart(owner, world(rank, data * tensor))


def save(folder: Path, named: Named, cuts: Cuts, data: int, tensor: int, seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for part in parts(named, cuts, data, tensor, seed):
        for name, tensors in part.files().items():
            write_tensors(folder / name, tensors)
    return folder


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("written", DEGREES)
def test_any_range_of_any_part_is_read_from_any_degree(tmp_path: Path, written: int, seed: int):
    named, cuts = random_parameters(seed)
    reader = EncoderReader(save(tmp_path, named, cuts, 1 + (written + seed) % 3, written, seed))
    random = Random(seed)
    for of in DEGREES:
        for name, whole in named.items():
            for index in range(of):
                piece = piece_of(cuts[name], index, of)
                wanted = 2 * sliced(whole, piece)
                for _ in range(4):
                    start, stop = sorted(random.choices(range(len(wanted) + 1), k=2))
                    read = reader.read_piece("first", name, whole.shape, piece, start, stop)
                    assert torch.equal(read, wanted[start:stop]), (name, piece, start, stop)


@pytest.mark.parametrize("written", [(1, 1), (3, 1), (2, 2), (1, 3), (2, 4)])
@pytest.mark.parametrize("read", [(1, 1), (2, 1), (3, 2), (2, 3), (1, 4)])
def test_every_rank_of_another_layout_gets_its_own_state(
    tmp_path: Path, written: tuple[int, int], read: tuple[int, int]
):
    named, cuts = random_parameters(11)
    save(tmp_path, named, cuts, *written)
    cleared = {name: torch.zeros_like(tensor) for name, tensor in named.items()}
    expected = list(parts(named, cuts, *read, seed=5))
    for found, wanted in zip(parts(cleared, cuts, *read, seed=5), expected, strict=True):
        found.owner.steps()[0].zero_()
        found.load(tmp_path)
        assert found.owner.steps()[0] == 7
        for shard, other in zip(found.owner.held(), wanted.owner.held(), strict=True):
            assert shard.key == other.key
            assert torch.equal(shard.values, other.values), shard.key


@pytest.mark.parametrize("degrees", [(1, 1), (3, 2), (2, 4)])
def test_each_entry_is_written_once(tmp_path: Path, degrees: tuple[int, int]):
    named, cuts = random_parameters(2)
    save(tmp_path, named, cuts, *degrees)
    lengths = [TensorFile(path).lengths for path in tmp_path.iterdir()]
    entries = sum(sum(held.values()) - held.get(STEPS, 0) for held in lengths)
    assert entries == 3 * sum(tensor.numel() for tensor in named.values())


def plan(name: str) -> Cut:
    """As a transformer is divided (Megatron-LM, section 3)."""
    if "in_proj" in name:
        return COLUMN3
    if "qkv" in name or "fc1" in name:
        return COLUMN
    return ROW if name.endswith(("out_proj.weight", "fc2.weight")) else REPLICATED


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_the_encoder_is_the_same_from_any_degree(tmp_path: Path, tensor: int):
    encoder = build_encoder(ModelConfig(preset="nano"), seed=1)
    named = {name: tensor.detach() for name, tensor in encoder.named_parameters()}
    cuts = {name: plan(name) for name in named}
    assert set(cuts.values()) == {COLUMN3, COLUMN, ROW, REPLICATED}
    save(tmp_path, named, cuts, 2, tensor)
    other = build_encoder(ModelConfig(preset="nano"), seed=2)
    restore_encoder(other, tmp_path)
    for name, found in other.state_dict().items():
        assert torch.equal(found, named[name]), name
    reader = EncoderReader(tmp_path)
    assert {name: reader.size(name) for name in reader.names()} == {
        name: whole.numel() for name, whole in named.items()
    }


WEIGHT = torch.arange(24 * 24.0).view(24, 24)


@pytest.fixture
def entries_read(monkeypatch) -> list[int]:
    counts = list[int]()
    own = TensorFile.read

    def counting(file: TensorFile, name: str, start: int, stop: int) -> Tensor:
        counts.append(stop - start)
        return own(file, name, start, stop)

    monkeypatch.setattr(TensorFile, "read", counting)
    return counts


@pytest.mark.parametrize(
    ("written", "read", "most"),
    [
        (None, None, 100),
        (Part(COLUMN, 0, 2), Part(COLUMN, 1, 2), 100),
        (Part(ROW, 0, 4), Part(ROW, 3, 4), 100),
        (Part(COLUMN3, 0, 2), Part(COLUMN3, 1, 2), 100),
        (None, Part(COLUMN, 1, 4), 6 * 24),  # 100 entries lie in up to 6 rows of 24
        (Part(COLUMN, 0, 2), Part(COLUMN, 3, 4), 6 * 24),
        (Part(ROW, 0, 4), None, 6 * 24),
        (Part(ROW, 0, 4), Part(ROW, 1, 2), 10 * 12),  # in up to 10 rows of 12: two of four parts
        (Part(ROW, 0, 2), Part(ROW, 1, 4), 18 * 12),  # in up to 18 rows of 6, one part of 12 wide
        (None, Part(ROW, 1, 2), 10 * 24),
    ],
)
def test_little_more_is_read_than_is_asked_for(
    tmp_path: Path, entries_read: list[int], written: Part | None, read: Part | None, most: int
):
    cuts = {"w": written.cut if written else REPLICATED}
    reader = EncoderReader(save(tmp_path, {"w": WEIGHT}, cuts, 2, written.of if written else 1))
    entries_read.clear()
    for start in (0, 7, 40):
        entries_read.clear()
        found = reader.read_piece("param", "w", WEIGHT.shape, read, start, start + 100)
        assert torch.equal(found, sliced(WEIGHT, read)[start : start + 100])
        assert 100 <= sum(entries_read) <= most


def test_keys_say_what_they_hold(tmp_path: Path):
    named, pieces = {"w": WEIGHT, "b": WEIGHT[0]}, {"w": Part(COLUMN3, 1, 2)}
    shards = whole_shards("param", named, pieces)
    assert [s.key for s in cut(shards, range(10, 580), 24 * 25)] == [
        "param/w/10/column3-1-of-2",
        "param/b/0",
    ]
    files = {"param/w/0/row-0-of-2": WEIGHT[:, :12], "param/w/0/row-1-of-2": WEIGHT[:, 12:]}
    write_tensors(tmp_path / file_name(0, 1), {k: t.flatten() for k, t in files.items()})
    read = EncoderReader(tmp_path).read_piece(
        "param", "w", WEIGHT.shape, None, 0, prod(WEIGHT.shape)
    )
    assert torch.equal(read, WEIGHT.flatten())
