"""Where the entries of a tensor rank's part lie in the whole parameter. Torch-free.

All in terms of the parameter's matrix (R, C) (``ovtrain.schema.cut.matrix``). A part is a smaller
matrix: some rows of that one, across some of its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ovtrain.schema.cut import Part, matrix


def overlap(first: range, second: range) -> range:
    return range(max(first.start, second.start), min(first.stop, second.stop))


def shifted(span: range, by: int) -> range:
    return range(span.start + by, span.stop + by)


@dataclass(frozen=True)
class Extent:
    """``rows`` of the matrix, one run behind the other, each across ``columns``."""

    rows: list[range]
    columns: range

    @classmethod
    def of(cls, piece: Part | None, shape: Sequence[int]) -> Extent:
        """``piece`` None: the whole parameter of this shape."""
        height, width = matrix(shape)
        if piece is None:
            return cls([range(height)], range(width))
        return cls(piece.rows(height), piece.columns(width))

    @property
    def numel(self) -> int:
        return sum(map(len, self.rows)) * len(self.columns)

    def runs(self) -> Iterator[tuple[range, int]]:
        """Rows of the matrix that follow on one another here as well, and what to add to their
        numbers to get those that they have here."""
        reached = 0
        for rows in self.rows:
            yield rows, reached - rows.start
            reached += len(rows)

    def in_whole(self, own: range) -> list[range]:
        """Rows ``own`` of the part, in order, as rows of the matrix."""
        found = (overlap(shifted(own, -by), rows) for rows, by in self.runs())
        return [rows for rows in found if rows]

    def in_part(self, rows: range) -> Iterator[tuple[range, int]]:
        """Of ``rows`` of the matrix those that the part holds, and what to add to their numbers."""
        found = ((overlap(rows, run), by) for run, by in self.runs())
        return ((run, by) for run, by in found if run)
