"""One reading of all features before anything is computed from them: what cannot be used, and how
large the numbers are.

A row is bad when a number in it is not finite, or, on the sphere, when all of them are zero.
Policy ``refuse``: LabelError that names the first ones; ``skip``: they take no part, own no label,
and are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clustering.points import Half, RowNumbers, Source, read_ahead
from ovtrain.distributed.collectives import gather_objects
from ovtrain.distributed.context import World
from ovtrain.schema.errors import LabelError

NAMED = 5
"""Bad rows that a message names."""


@dataclass(frozen=True)
class Survey:
    """Rows that are ``not_finite`` or ``zero`` (rising numbers); ``largest`` absolute number of
    the others."""

    not_finite: RowNumbers
    zero: RowNumbers
    largest: float

    @property
    def bad(self) -> RowNumbers:
        return np.sort(np.concatenate([self.not_finite, self.zero]))

    def counts(self) -> dict[str, int]:
        return {"not_finite": len(self.not_finite), "zero": len(self.zero)}


def survey(
    source: Source,
    world: World,
    *,
    spherical: bool,
    policy: str,
    name: Callable[[int], str] = "row {}".format,
) -> Survey:
    """Collective: each rank reads its part. ``name`` says what a row is. Raises LabelError."""
    mine = world.slice_of(len(source))
    parts = [_block(start, rows) for start, rows in read_ahead(source, mine.start, mine.stop)]
    parts = [part for rank in gather_objects(parts, world.group) for part in rank]
    none = np.empty(0, np.int64)
    found = Survey(
        np.concatenate([none, *(part[0] for part in parts)]),
        np.concatenate([none, *(part[1] for part in parts)]) if spherical else none,
        max((part[2] for part in parts), default=0.0),
    )
    if policy == "refuse" and len(found.bad):
        _refuse(found, len(source), name)
    return found


def _block(start: int, rows: Half) -> tuple[RowNumbers, RowNumbers, float]:
    magnitude = np.abs(rows.view(np.uint16) & 0x7FFF).max(axis=1)  # orders as the numbers do
    finite = magnitude < 0x7C00
    highest = magnitude[finite].max(initial=0)
    largest = float(np.array(highest, np.uint16).view(np.float16))
    return start + np.flatnonzero(~finite), start + np.flatnonzero(magnitude == 0), largest


def _refuse(found: Survey, samples: int, name: Callable[[int], str]) -> None:
    kinds = {"not finite": found.not_finite, "of length zero, which has no direction": found.zero}
    said = [
        f"{len(rows)} of {samples} {what} ({_names(rows, name)})"
        for what, rows in kinds.items()
        if len(rows)
    ]
    raise LabelError(
        "features",
        "; ".join(said),
        fix="bad=skip leaves them out and counts them; or compute the features again",
    )


def _names(rows: RowNumbers, name: Callable[[int], str]) -> str:
    first: list[Any] = [name(int(row)) for row in rows[:NAMED]]
    return ", ".join(first) + (", ..." if len(rows) > NAMED else "")
