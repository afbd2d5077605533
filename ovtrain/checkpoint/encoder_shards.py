"""The encoder on disk: flat pieces of named tensors, from any number of ranks to any other.

Each rank writes the pieces that it owns, as they lie in its optimizer's partition: nothing is
gathered. ``encoder-{rank:05d}-of-{ranks:05d}.safetensors`` holds 1-D float32 tensors named
``{part}/{name}/{start}``: entries start, start + 1, ... of the flattened parameter ``name`` (part
``param``) or of its AdamW moments (``first``, ``second``), and ``steps``, the updates done. A
reader asks for a range and gets it from whichever files hold it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ovtrain.checkpoint.tensor_files import TensorFile
from ovtrain.schema.errors import CheckpointError

PARTS = ("param", "first", "second")
STEPS = "steps"
_NAME = re.compile(r"encoder-(?P<rank>\d{5})-of-(?P<ranks>\d{5})\.safetensors")


@dataclass(frozen=True)
class Shard:
    """``values``: a flat view of a live float32 tensor, entries ``start``, ... of a parameter or
    of its moment."""

    part: str
    name: str
    start: int
    values: Tensor

    @property
    def key(self) -> str:
        return f"{self.part}/{self.name}/{self.start}"


def file_name(rank: int, ranks: int) -> str:
    return f"encoder-{rank:05d}-of-{ranks:05d}.safetensors"


def whole_shards(part: str, named: Mapping[str, Tensor]) -> list[Shard]:
    """One shard per tensor."""
    return [Shard(part, name, 0, tensor.detach().view(-1)) for name, tensor in named.items()]


def cut(shards: Iterable[Shard], pieces: range, of: int) -> list[Shard]:
    """Of ``of`` entries that ``shards`` hold one behind the other, those in ``pieces``."""
    found, reached = list[Shard](), 0
    for shard in shards:
        start = max(pieces.start - reached, 0)
        stop = min(pieces.stop - reached, len(shard.values))
        if start < stop:
            values = shard.values[start:stop]
            found.append(Shard(shard.part, shard.name, shard.start + start, values))
        reached += len(shard.values)
    assert reached == of, (reached, of)
    return found


class EncoderReader:
    """The encoder of a step directory. Raises CheckpointError where its files are not whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pieces: dict[tuple[str, str], list[tuple[int, int, TensorFile, str]]] = {}
        self._steps: Tensor | None = None
        for path in sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)):
            self._index(TensorFile(path))
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece[0])

    def _index(self, file: TensorFile) -> None:
        for key, length in file.lengths.items():
            if key == STEPS:
                self._steps = file.read(key, 0, length)
                continue
            part, name, start = key.rsplit("/", 2) if key.count("/") == 2 else ("", key, "-1")
            if part not in PARTS or not start.isdigit():
                raise CheckpointError(str(file.path), f"holds {key}, which is no encoder's")
            piece = (int(start), int(start) + length, file, key)
            self._pieces.setdefault((part, name), []).append(piece)

    def names(self) -> list[str]:
        return sorted(name for part, name in self._pieces if part == "param")

    def size(self, name: str) -> int:
        """Entries of a parameter."""
        return self._pieces[("param", name)][-1][1]

    @property
    def steps(self) -> float:
        if self._steps is None:
            raise CheckpointError(str(self.folder), "holds no count of the encoder's updates")
        return float(self._steps)

    def read(self, part: str, name: str, start: int, stop: int) -> Tensor:
        """(stop - start,) float32 of a flattened tensor."""
        found, reached = list[Tensor](), start
        for first, last, file, key in self._pieces.get((part, name), []):
            if last <= reached or first >= stop:
                continue
            if first > reached:
                break
            end = min(last, stop)
            found.append(file.read(key, reached - first, end - first))
            reached = end
        if reached != stop:
            raise CheckpointError(
                str(self.folder),
                f"entries {start}..{stop} of {part}/{name} are not whole",
                fix="put the missing encoder files back, or take another checkpoint",
            )
        return torch.cat(found) if found else torch.empty(0)

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Raises CheckpointError where an encoder with other parameters was saved."""
        saved = {name: self.size(name) for name in self.names()}
        wanted = {name: prod(shape) for name, shape in shapes.items()}
        wrong = sorted({n for n in {*saved, *wanted} if saved.get(n) != wanted.get(n)})
        if wrong:
            raise CheckpointError(
                str(self.folder),
                f"holds another encoder (first difference: {wrong[0]})",
                fix="use the model.preset it was trained with",
            )

    def whole(self, part: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Named tensors of ``shapes``."""
        self.check(shapes)
        return {n: self.read(part, n, 0, prod(s)).view(s) for n, s in shapes.items()}
