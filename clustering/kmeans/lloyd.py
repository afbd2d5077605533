"""k-means (Lloyd 1982), flat: assign every point to its nearest center, move centers to the means,
again. Euclidean, or spherical: points and centers of unit length.

What beside that: empty centers go to points of the largest clusters, giants may be split, and at
the end no center is empty, since those that are move to the points served worst until none is
left. That ends: each move lowers the objective, and where every point lies on a center there are
as many used centers as distinct points, of which there are at least C (``clustering.kmeans.draw``).

Everything is a function of the points and the seed: the number of ranks, their grid and
interruptions change no bit of it.

S samples, C centers, F width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clustering.kmeans.draw import first_centers, too_few
from clustering.kmeans.passes import CHUNK, Passes, Tally
from clustering.kmeans.refill import Members, Worst, freed, parts
from clustering.kmeans.state import Array, State
from clustering.neighbours import Layout
from clustering.points import Points, RowNumbers, digests_of
from ovtrain.config.cluster import ClusterConfig
from ovtrain.distributed.collectives import gather_objects
from ovtrain.distributed.context import seed_for

CANDIDATES = 4
"""Points looked at for each empty center at the end: equal ones count once."""
FILLED_AT_ONCE = 2**27
"""Numbers of the points that empty centers move to at a time: every rank holds them."""


@dataclass(frozen=True)
class Moves:
    """``centers`` (n,) become the points ``rows`` (n,)."""

    centers: RowNumbers
    rows: RowNumbers

    def __len__(self) -> int:
        return len(self.rows)


class Lloyd:
    """One clustering of ``points``; its state is ``state``'s."""

    def __init__(
        self,
        points: Points,
        config: ClusterConfig,
        passes: Passes,
        state: State,
        say: Callable[[str], None],
    ) -> None:
        self.points, self.config, self.passes, self.state = points, config, passes, state
        self.say = say

    @property
    def layout(self) -> Layout:
        return self.passes.layout

    def run(self, start: RowNumbers | None = None) -> None:
        """All restarts that ``state`` does not have yet. ``start``: rows of the first centers."""
        progress = self.state.progress
        while not progress.done:
            if progress.iteration < 0:
                self.begin(start)
            while not self._converged():
                self.iterate()
            self.settle()

    # -- one restart

    def begin(self, start: RowNumbers | None) -> None:
        config, progress = self.config, self.state.progress
        if start is None:
            seed = seed_for(config.seed, "k-means", progress.restart)
            start = first_centers(
                self.points, config.clusters, seed, config.start, self.layout.grid.world
            )
        self._place(self.state.centers(progress.slot), Moves(np.arange(len(start)), start))
        progress.iteration = 0
        self.state.save()

    def _converged(self) -> bool:
        """As many iterations as wanted, or nothing changes, or hardly anything."""
        progress = self.state.progress
        if progress.iteration >= self.config.iterations:
            return True
        last = [row for row in progress.rows if row["restart"] == progress.restart][-2:]
        if not last or any(row["repaired"] or row["split"] for row in last):
            return False  # a split may raise the objective for a while
        if last[-1]["iteration"] > 0 and last[-1]["moved"] == 0:
            return True
        before, now = last[0]["objective"], last[-1]["objective"]
        gained_enough = before - now >= self.config.tolerance * before
        return self.config.tolerance > 0 and len(last) == 2 and not gained_enough

    def iterate(self) -> None:
        """Collective: assign all points, move all centers."""
        began, progress = time.monotonic(), self.state.progress
        slot, other = progress.slot, 1 - progress.slot
        old, new = self.state.centers(slot), self.state.centers(other)
        keys = self.state.nearest(other)
        before = self.state.nearest(slot) if progress.iteration else None
        what = self._what(f"{progress.iteration + 1}/{self.config.iterations}")
        tally = self.passes.assign(old, keys, before, what, add=True)
        for part in self.layout.ranges:
            sums = self.passes.sums(part, keys, f"{what}, sums")
            table = means(
                sums, tally.counts, self.passes.load(old, part), part, self.passes.shift,
                spherical=self.config.spherical,
            )  # fmt: skip
            if self.layout.first_outer:
                new.write(part.start, table.cpu().numpy())
        moves, taken = self._refill(tally, keys)
        self._place(new, moves)
        repaired = {"repaired": len(moves) - taken, "split": taken}
        self._note(tally, began, repaired)
        progress.iteration += 1
        progress.slot = other
        self.state.save()

    def settle(self) -> None:
        """No center is left empty; the result of the restart is kept if it is the best."""
        began, progress = time.monotonic(), self.state.progress
        slot, other = progress.slot, 1 - progress.slot
        centers, keys = self.state.centers(slot), self.state.nearest(other)
        before = self.state.nearest(slot) if progress.iteration else None
        tally = self.passes.assign(centers, keys, before, self._what("final"), add=False)
        moved = tally.moved
        if (
            not tally.counts.all()
        ):  # not in place: a run cut short here begins from the same centers
            self._copy(centers, self.state.centers(other))
            centers, progress.slot = self.state.centers(other), other
        filled = 0
        while not tally.counts.all():
            moves = self._worst(tally, keys)
            self._place(centers, moves)
            ids = torch.from_numpy(moves.centers).to(self.points.device)
            tally = self.passes.improve(keys, self.points.take(moves.rows).float(), ids)
            filled += len(moves)
        self._note(replace(tally, moved=moved), began, {"repaired": filled, "split": 0})
        progress.rows[-1]["final"] = True
        if tally.objective < progress.objective:
            progress.best, progress.objective = progress.restart, tally.objective
            self.state.keep_best()
        progress.restart, progress.iteration, progress.slot = progress.restart + 1, -1, other
        progress.done = progress.restart >= self.config.restarts
        self.state.save()

    # -- centers that own nothing

    def _refill(self, tally: Tally, keys: Array) -> tuple[Moves, int]:
        """(moves, how many of them take a center from a small cluster)."""
        largest = 0.0 if self._last() else self.config.largest
        free, taken = freed(tally.counts, largest)
        if not len(free):
            return Moves(free, free), 0
        progress = self.state.progress
        seed = seed_for(self.config.seed, "refill", progress.restart, progress.iteration)
        members = Members(parts(tally.apart, len(free)), seed)
        for block in self.passes.assigned(keys):
            members.add(block)
        members.merge(gather_objects(members.picked, self.layout.grid.world.group))
        rows = members.rows()
        return Moves(free[: len(rows)], rows), max(0, len(rows) - (len(free) - taken))

    def _last(self) -> bool:
        return self.state.progress.iteration + 1 >= self.config.iterations

    def _worst(self, tally: Tally, keys: Array) -> Moves:
        """Points for the empty centers (some of them, where they are many), no two of them equal.
        ConfigError where there is none left."""
        empty = np.flatnonzero(tally.counts == 0)
        all_empty, empty = len(empty), empty[: max(1, FILLED_AT_ONCE // self.points.width)]
        worst = Worst(CANDIDATES * len(empty))
        for block in self.passes.assigned(keys):
            worst.add(block)
        worst.merge(gather_objects(worst.kept, self.layout.grid.world.group))
        rows = worst.rows()
        first = np.sort(np.unique(digests_of(self.points, rows), return_index=True)[1])
        rows = rows[first[: len(empty)]]
        if not len(rows):  # every point lies on a center: cells may have begun with too few of them
            raise too_few(
                self.config.clusters, self.config.clusters - all_empty, self.points.usable
            )
        return Moves(empty[: len(rows)], rows)

    # -- arrays

    def _place(self, centers: Array, moves: Moves) -> None:
        """Write points as centers; of its own ranges, each first rank of the outer dimension."""
        if not self.layout.first_outer or not len(moves):
            return
        for part in self.layout.ranges:
            inside = (moves.centers >= part.start) & (moves.centers < part.stop)
            ids, rows = moves.centers[inside], moves.rows[inside]
            step = max(1, CHUNK // self.points.width)
            for i in range(0, len(ids), step):
                vectors = self.points.take(rows[i : i + step]).float().cpu().numpy()
                _scatter(centers, ids[i : i + step], vectors)

    def _copy(self, source: Array, target: Array) -> None:
        if not self.layout.first_outer:
            return
        step = max(1, CHUNK // self.points.width)
        for part in self.layout.ranges:
            for i in range(part.start, part.stop, step):
                target.write(i, source.read(i, min(step, part.stop - i)))

    # -- words

    def _what(self, which: str) -> str:
        restart = self.state.progress.restart
        again = (
            f" (restart {restart + 1}/{self.config.restarts})" if self.config.restarts > 1 else ""
        )
        return f"k-means{again} {which}"

    def _note(self, tally: Tally, began: float, repaired: dict[str, int]) -> None:
        progress, usable = self.state.progress, self.points.usable
        empty = int((tally.counts == 0).sum())
        row: dict[str, Any] = {
            "restart": progress.restart,
            "iteration": progress.iteration,
            "objective": tally.objective,
            "mean_squared": tally.objective / usable,
            "moved": tally.moved / usable,
            "empty": empty,
            "largest": int(tally.counts.max()),
            **repaired,
            "seconds": round(time.monotonic() - began, 3),
        }
        progress.rows.append(row)
        self.say(
            f"{self._what(str(progress.iteration))}: mean squared distance "
            f"{row['mean_squared']:.6g}, {row['moved']:.2%} moved, {empty} empty, largest "
            f"{row['largest']:,}, {row['seconds']:.1f} s"
        )


def means(
    sums: Tensor, counts: np.ndarray, old: Tensor, part: range, shift: int, *, spherical: bool
) -> Tensor:
    """(c, F) float32 from integer sums; a center keeps its place where it has no points, or where
    they cancel out on the sphere."""
    own = torch.from_numpy(counts[part.start : part.stop]).to(sums.device)
    new = old.clone()
    step = max(1, CHUNK // sums.shape[1])
    for i in range(0, len(new), step):
        rows = slice(i, i + step)
        mean = sums[rows].double() * 2.0**-shift / own[rows, None].clamp(min=1)
        known = own[rows] > 0
        if spherical:
            length = torch.linalg.vector_norm(mean, dim=1, keepdim=True)
            known &= length[:, 0] > 0
            mean /= length.clamp(min=torch.finfo(torch.float64).tiny)
        new[rows] = torch.where(known[:, None], mean.float(), old[rows])
    return new


def _scatter(centers: Array, ids: RowNumbers, vectors: np.ndarray) -> None:
    """Write rows ``ids``, runs of neighbours at once."""
    breaks = [0, *(np.flatnonzero(np.diff(ids) != 1) + 1).tolist(), len(ids)]
    for a, b in pairwise(breaks):
        if b > a:
            centers.write(int(ids[a]), vectors[a:b])
