"""One tensor of a checkpoint, in ranges of its entries that lie in any number of files.

The ranges count in the flattened parameter, or in the flattened parts of it that tensor ranks had.
A reader may hold other parts: it gets its entries from the rows of the parameter's matrix that
they lie in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ovtrain.checkpoint.extent import Extent, overlap, shifted
from ovtrain.checkpoint.tensor_files import TensorFile
from ovtrain.schema.cut import Cut, Part
from ovtrain.schema.errors import CheckpointError


@dataclass(frozen=True)
class Saved:
    """Entries start..stop, under ``key`` in ``file``."""

    start: int
    stop: int
    file: TensorFile
    key: str


class SavedTensor:
    """``what``: its name in messages. ``absent``: what to say of missing files where entries are
    missing. Raises CheckpointError."""

    def __init__(self, folder: Path, what: str, absent: str) -> None:
        self.folder, self.what, self.absent = folder, what, absent
        self._saved: dict[Part | None, list[Saved]] = {}

    def add(self, piece: Part | None, saved: Saved) -> None:
        """A range of the whole (``piece`` None) or of a part of it."""
        ranges = self._saved.setdefault(piece, [])
        if saved.start < saved.stop:
            ranges.append(saved)

    def close(self) -> None:
        """All is added. Raises where an entry is held twice, or may be: in two divisions."""
        if len({_division(piece) for piece in self._saved}) > 1:
            self._refuse_divisions()
        for ranges in self._saved.values():
            ranges.sort(key=lambda saved: (saved.start, saved.stop))
            for one, other in pairwise(ranges):
                if other.start < one.stop:
                    raise CheckpointError(
                        str(other.file.path),
                        f"holds {other.key}, of which {one.file.path.name} holds entries as "
                        f"{one.key}",
                        fix="remove the file of another checkpoint, or take another one",
                    )

    def _refuse_divisions(self) -> None:
        held = dict[tuple[Cut, int] | None, list[Part | None]]()
        for piece in self._saved:
            held.setdefault(_division(piece), []).append(piece)
        raise CheckpointError(
            str(self.folder),
            f"holds {self.what} in several divisions: {'; '.join(map(_described, held.values()))}",
            allowed="one",
            fix="remove the files of another checkpoint, or take another one",
        )

    @property
    def _some(self) -> Part | None:
        """All parts are of its division."""
        return next(iter(self._saved))

    @property
    def numel(self) -> int:
        """Entries of the whole parameter, so far as the files tell."""
        stops = (ranges[-1].stop for ranges in self._saved.values() if ranges)
        return _of(self._some) * max(stops, default=0)

    def read(self, shape: Sequence[int], piece: Part | None, start: int, stop: int) -> Tensor:
        """(stop - start,): entries start..stop of the flattened part ``piece`` (None: of the whole)
        of the parameter, ``shape`` being that of the whole."""
        if _division(piece) == _division(self._some):
            return self._range(piece, start, stop)
        self._check_fit(shape)
        wanted = Extent.of(piece, shape)
        width = len(wanted.columns)
        own = range(start // width, -(-stop // width))
        blocks = [self._block(shape, rows, wanted.columns) for rows in wanted.in_whole(own)]
        flat = torch.cat(blocks).view(-1) if blocks else torch.empty(0)
        return flat[start - own.start * width : stop - own.start * width]

    def _check_fit(self, shape: Sequence[int]) -> None:
        held = Extent.of(self._some, shape).numel * _of(self._some)
        if held != prod(shape):
            raise CheckpointError(
                str(self.folder),
                f"holds {self.what} as {_described(list(self._saved))}, but a parameter of shape "
                f"{tuple(shape)} does not divide so",
                fix="use the model.preset it was trained with",
            )

    def _block(self, shape: Sequence[int], rows: range, columns: range) -> Tensor:
        """(rows, columns) of the parameter's matrix, from the parts that hold them."""
        block = torch.empty(len(rows), len(columns))
        for piece in _siblings(self._some):
            held = Extent.of(piece, shape)
            across, width = overlap(columns, held.columns), len(held.columns)
            for run, by in held.in_part(rows) if across else ():
                own = shifted(run, by)
                values = self._range(piece, own.start * width, own.stop * width)
                down, right = shifted(run, -rows.start), shifted(across, -columns.start)
                inside = shifted(across, -held.columns.start)
                block[down.start : down.stop, right.start : right.stop] = values.view(-1, width)[
                    :, inside.start : inside.stop
                ]
        return block

    def _range(self, piece: Part | None, start: int, stop: int) -> Tensor:
        """Entries as they are in the files."""
        found, reached = list[Tensor](), start
        for saved in self._saved.get(piece, []):
            if saved.stop <= reached or saved.start >= stop:
                continue
            if saved.start > reached:
                break
            end = min(saved.stop, stop)
            found.append(saved.file.read(saved.key, reached - saved.start, end - saved.start))
            reached = end
        if reached != stop:
            of = "" if piece is None else f", part {piece.text},"
            raise CheckpointError(
                str(self.folder),
                f"entries {start}..{stop} of {self.what}{of} are not whole: {reached} is "
                f"missing{self.absent}",
                fix="put the missing encoder files back, or take another checkpoint",
            )
        return torch.cat(found) if found else torch.empty(0)


def _division(piece: Part | None) -> tuple[Cut, int] | None:
    """What all parts of one division have in common."""
    return None if piece is None else (piece.cut, piece.of)


def _of(piece: Part | None) -> int:
    return 1 if piece is None else piece.of


def _siblings(piece: Part | None) -> list[Part | None]:
    """All parts of its division."""
    return [None] if piece is None else [Part(piece.cut, i, piece.of) for i in range(piece.of)]


def _described(pieces: list[Part | None]) -> str:
    """Parts of one division, and which of it are not here."""
    texts = ["whole" if piece is None else piece.text for piece in pieces]
    lacking = [p.text for p in _siblings(pieces[0]) if p is not None and p not in pieces]
    return ", ".join(texts) + (f" (without {', '.join(lacking)})" if lacking else "")
