"""One reading of all features before anything is computed from them: what cannot be used, and how
large the numbers are.

A row is bad when a number in it is not finite, or, on the sphere, when all of them are zero.
Policy ``refuse``: LabelError that names the first ones; ``skip``: they take no part, own no label,
and are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clustering.points import Half, RowNumbers, Source, read_ahead
from clustering.progress import Pace
from ovtrain.distributed.collectives import broadcast_object, gather_objects
from ovtrain.distributed.context import World
from ovtrain.schema.arrays import NOT_ARRAYS
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import LabelError
from ovtrain.schema.features import FeatureStore

NAMED = 5
"""Bad rows that a message names."""


@dataclass(frozen=True)
class Survey:
    """Rows that are ``not_finite`` or ``zero`` (rising numbers) of ``samples``; ``largest``
    absolute number of the others."""

    samples: int
    not_finite: RowNumbers
    zero: RowNumbers
    largest: float

    def bad(
        self, *, spherical: bool, policy: str, name: Callable[[int], str] = "row {}".format
    ) -> RowNumbers:
        """Rows that cannot be used, rising. ``name`` says what a row is. LabelError where the
        policy is ``refuse`` and there are any."""
        kinds = {"not finite": self.not_finite}
        if spherical:
            kinds["of length zero, which has no direction"] = self.zero
        said = [
            f"{len(rows)} of {self.samples} {what} ({_names(rows, name)})"
            for what, rows in kinds.items()
            if len(rows)
        ]
        if policy == "refuse" and said:
            fix = "bad=skip leaves them out and counts them; or compute the features again"
            raise LabelError("features", "; ".join(said), fix=fix)
        return np.sort(np.concatenate(list(kinds.values())))

    def counts(self, *, spherical: bool) -> dict[str, int]:
        return {"not_finite": len(self.not_finite), "zero": len(self.zero) if spherical else 0}


def survey(store: FeatureStore, world: World, path: Path, say: Callable[[str], None]) -> Survey:
    """Collective: what ``path`` holds of this store, else each rank reads its part of it."""
    known = _known(path, store.identity) if world.is_main else None
    known = broadcast_object(known, world.group)
    if known is not None:
        return known
    found = look(store, world, say)
    if world.is_main:
        with atomic_open(path) as handle:
            np.savez(handle, **vars(found), identity=store.identity)
    return found


def look(source: Source, world: World, say: Callable[[str], None]) -> Survey:
    """Collective: each rank reads its part."""
    mine = world.slice_of(len(source))
    pace = Pace(len(mine), "looking through the features", say)
    parts: list[tuple[RowNumbers, RowNumbers, float]] = []
    for start, rows in read_ahead(source, mine.start, mine.stop):
        parts.append(_block(start, rows))
        pace.step(len(rows))
    parts = [part for rank in gather_objects(parts, world.group) for part in rank]
    none = np.empty(0, np.int64)
    return Survey(
        len(source),
        np.concatenate([none, *(part[0] for part in parts)]),
        np.concatenate([none, *(part[1] for part in parts)]),
        max((part[2] for part in parts), default=0.0),
    )


def _known(path: Path, identity: str) -> Survey | None:
    try:
        with np.load(path, allow_pickle=False) as held:
            found = {name: held[name] for name in held}
    except NOT_ARRAYS:
        return None  # none, or damaged: it is made again
    if str(found.pop("identity", "")) != identity:
        return None
    samples, largest = int(found["samples"]), float(found["largest"])
    return Survey(samples, found["not_finite"], found["zero"], largest)


def _block(start: int, rows: Half) -> tuple[RowNumbers, RowNumbers, float]:
    magnitude = np.abs(rows.view(np.uint16) & 0x7FFF).max(axis=1)  # orders as the numbers do
    finite = magnitude < 0x7C00
    highest = magnitude[finite].max(initial=0)
    largest = float(np.array(highest, np.uint16).view(np.float16))
    return start + np.flatnonzero(~finite), start + np.flatnonzero(magnitude == 0), largest


def _names(rows: RowNumbers, name: Callable[[int], str]) -> str:
    first: list[Any] = [name(int(row)) for row in rows[:NAMED]]
    return ", ".join(first) + (", ..." if len(rows) > NAMED else "")
