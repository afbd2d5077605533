"""The encoder on disk: flat ranges of named tensors, from any layout of ranks to any other.

Each rank writes the entries that it owns, as they lie in its optimizer's partition: nothing is
gathered. ``encoder-{rank:05d}-of-{ranks:05d}.safetensors`` holds 1-D float32 tensors named

    {part}/{name}/{start}           entries start, start + 1, ... of the flattened parameter
    {part}/{name}/{start}/{piece}   of a flattened tensor-parallel part of it (``column-0-of-2``)

where ``part`` is ``param``, or ``first`` or ``second`` for AdamW's moments; and ``steps``, the
updates done. A reader asks for a range and gets it from whichever files hold it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ovtrain.checkpoint.saved_tensor import Saved, SavedTensor
from ovtrain.checkpoint.tensor_files import TensorFile
from ovtrain.schema.cut import Part
from ovtrain.schema.errors import CheckpointError

PARTS = ("param", "first", "second")
STEPS = "steps"
_NAME = re.compile(r"encoder-(?P<rank>\d{5})-of-(?P<ranks>\d{5})\.safetensors")
_KEY = re.compile(r"(?P<part>[a-z]+)/(?P<name>[^/]+)/(?P<start>[0-9]+)(?:/(?P<piece>[^/]+))?")


@dataclass(frozen=True)
class Shard:
    """``values``: a flat view of a live float32 tensor, entries ``start``, ... of a parameter or
    of its moment; where tensor ranks divide it, of its flattened part ``piece``."""

    part: str
    name: str
    start: int
    values: Tensor
    piece: Part | None = None

    @property
    def key(self) -> str:
        key = f"{self.part}/{self.name}/{self.start}"
        return key if self.piece is None else f"{key}/{self.piece.text}"


def file_name(rank: int, ranks: int) -> str:
    return f"encoder-{rank:05d}-of-{ranks:05d}.safetensors"


def whole_shards(
    part: str, named: Mapping[str, Tensor], pieces: Mapping[str, Part] | None = None
) -> list[Shard]:
    """One shard per tensor; ``pieces`` names those that are parts of a parameter."""
    known = pieces or {}
    return [
        Shard(part, name, 0, tensor.detach().view(-1), known.get(name))
        for name, tensor in named.items()
    ]


def cut(shards: Iterable[Shard], pieces: range, of: int) -> list[Shard]:
    """Of ``of`` entries that ``shards`` hold one behind the other, those in ``pieces``."""
    found, reached = list[Shard](), 0
    for shard in shards:
        start = max(pieces.start - reached, 0)
        stop = min(pieces.stop - reached, len(shard.values))
        if start < stop:
            values = shard.values[start:stop]
            found.append(replace(shard, start=shard.start + start, values=values))
        reached += len(shard.values)
    assert reached == of, (reached, of)
    return found


class EncoderReader:
    """The encoder of a step directory, whatever layout of ranks wrote it.

    Raises CheckpointError where its files are not whole or hold an entry twice.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors: dict[tuple[str, str], SavedTensor] = {}
        self._steps: Tensor | None = None
        files = {path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)}
        self._absent = _absent(files)
        for name in sorted(files):
            self._index(TensorFile(folder / name))
        for tensor in self._tensors.values():
            tensor.close()

    def _index(self, file: TensorFile) -> None:
        for key, length in file.lengths.items():
            if key == STEPS:
                self._steps = file.read(key, 0, length)
                continue
            part, name, start, piece = _parsed(key, file.path)
            saved = Saved(start, start + length, file, key)
            self._tensor(part, name).add(piece, saved)

    def _tensor(self, part: str, name: str) -> SavedTensor:
        fresh = SavedTensor(self.folder, f"{part}/{name}", self._absent)
        return self._tensors.setdefault((part, name), fresh)

    def names(self) -> list[str]:
        return sorted(name for part, name in self._tensors if part == "param")

    def size(self, name: str) -> int:
        """Entries of a parameter, whole."""
        return self._tensors["param", name].numel

    @property
    def steps(self) -> float:
        if self._steps is None:
            raise CheckpointError(str(self.folder), "holds no count of the encoder's updates")
        return float(self._steps)

    def read_piece(
        self, part: str, name: str, shape: Sequence[int], piece: Part | None, start: int, stop: int
    ) -> Tensor:
        """(stop - start,) float32: entries start..stop of the flattened part ``piece`` (None: of
        the whole) of a parameter whose whole shape is ``shape``."""
        if start == stop:
            return torch.empty(0)
        if (part, name) not in self._tensors:
            raise CheckpointError(
                str(self.folder),
                f"holds no {part}/{name}{self._absent}",
                fix="put the missing encoder files back, or take another checkpoint",
            )
        return self._tensors[part, name].read(shape, piece, start, stop)

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Raises CheckpointError where an encoder with other parameters was saved."""
        saved = {name: self.size(name) for name in self.names()}
        wanted = {name: prod(shape) for name, shape in shapes.items()}
        wrong = sorted({n for n in {*saved, *wanted} if saved.get(n) != wanted.get(n)})
        if wrong:
            counts = f"{saved.get(wrong[0], 0)} entries instead of {wanted.get(wrong[0], 0)}"
            raise CheckpointError(
                str(self.folder),
                f"holds another encoder (first difference: {wrong[0]}, {counts}){self._absent}",
                fix=("put missing files back, or " if self._absent else "")
                + "use the model.preset it was trained with",
            )

    def whole(self, part: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Named tensors of ``shapes``."""
        self.check(shapes)
        return {n: self.read_piece(part, n, s, None, 0, prod(s)).view(s) for n, s in shapes.items()}


def _parsed(key: str, path: Path) -> tuple[str, str, int, Part | None]:
    """part, name, start, piece."""
    match = _KEY.fullmatch(key)
    text = match and match["piece"]
    piece = Part.parse(text) if text else None
    if match is None or match["part"] not in PARTS or (piece.text if piece else None) != text:
        raise CheckpointError(str(path), f"holds {key}, which is no encoder's")
    return match["part"], match["name"], int(match["start"]), piece


def _absent(files: Collection[str]) -> str:
    """What to say where entries are missing. No fault in itself: a rank that owned nothing has
    written no file."""
    matches = (_NAME.fullmatch(name) for name in files)
    counts = sorted({int(match["ranks"]) for match in matches if match})
    absent = [name for n in counts for r in range(n) if (name := file_name(r, n)) not in files]
    shown = ", ".join(absent[:4]) + (", ..." if len(absent) > 4 else "")
    return f" (not here: {shown})" if absent else ""
