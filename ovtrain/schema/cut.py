"""How tensor ranks divide a parameter, and how a checkpoint says so. Torch-free.

A parameter of three or more dimensions counts as a matrix (R, C): its first dimension, and the rest
flattened; a vector as (R, 1). T tensor ranks hold of it

    column       R / T rows each: output features (Megatron-LM, section 3). ``stacks`` > 1: of each
                 of so many equal blocks of rows, one behind the other (queries, keys, values)
    row          C / T columns of a matrix each: input features
    replicated   all of it
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

KINDS = ("replicated", "column", "row")
_TEXT = re.compile(r"(?P<kind>column|row)(?P<stacks>\d*)-(?P<index>\d+)-of-(?P<of>\d+)")


@dataclass(frozen=True)
class Cut:
    """One of KINDS; ``stacks`` is 1 but for ``column``."""

    kind: str = "replicated"
    stacks: int = 1

    @property
    def divided(self) -> bool:
        return self.kind != "replicated"

    def divides(self, shape: Sequence[int], of: int) -> bool:
        """Whether a parameter of this shape falls into ``of`` equal parts."""
        if self.kind == "row":
            return len(shape) == 2 and shape[1] % of == 0
        return not self.divided or shape[0] % (self.stacks * of) == 0

    def numel(self, whole: int, of: int) -> int:
        """Of a rank's part of ``whole`` numbers."""
        return whole // of if self.divided else whole


REPLICATED, COLUMN, ROW = Cut(), Cut("column"), Cut("row")


@dataclass(frozen=True)
class Part:
    """Part ``index`` of ``of``."""

    cut: Cut
    index: int
    of: int

    @property
    def text(self) -> str:
        """``column-0-of-2``, ``column3-1-of-4``, ``row-0-of-2``."""
        stacks = self.cut.stacks if self.cut.stacks > 1 else ""
        return f"{self.cut.kind}{stacks}-{self.index}-of-{self.of}"

    @classmethod
    def parse(cls, text: str) -> Part | None:
        """None where the text is no part's."""
        found = _TEXT.fullmatch(text)
        if found is None:
            return None
        cut = Cut(found["kind"], int(found["stacks"] or 1))
        index, of = int(found["index"]), int(found["of"])
        return cls(cut, index, of) if index < of else None

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """Of this part of a parameter of shape ``whole``."""
        first, *rest = whole
        if self.cut.kind == "column":
            return (first // self.of, *rest)
        (columns,) = rest
        return first, columns // self.of

    def rows(self, count: int) -> list[range]:
        """Which of a matrix's ``count`` rows it holds, in order: one range per stack."""
        if self.cut.kind == "row":
            return [range(count)]
        block = count // self.cut.stacks
        size = block // self.of
        starts = [s * block + self.index * size for s in range(self.cut.stacks)]
        return [range(start, start + size) for start in starts]

    def columns(self, count: int) -> range:
        """Which of a matrix's ``count`` columns it holds."""
        if self.cut.kind == "column":
            return range(count)
        size = count // self.of
        return range(self.index * size, (self.index + 1) * size)


def matrix(shape: Sequence[int]) -> tuple[int, int]:
    """(R, C) as which a parameter counts."""
    return shape[0], prod(shape[1:])
