"""Losses and gradients of a batch against the drawn rows, one tile of logits at a time.

A tile is B samples by some hundreds or thousands of rows: it is made by one product, turned into
the gradient of its cosines in place, spent on the two gradients that it gives, and gone.
``logistic`` is a sum over rows and needs one look at each tile. The exponential losses need their
negatives' sums over all rows of all ranks first: ``statistics`` looks at every tile once, the ranks
add up, and ``exponential_gradients`` makes the tiles again, last one first, since that is still
there.

Positives stand apart: their cosines are read from the tile, -inf takes their place (a sample's own
positives are never its negatives), and their gradients are put in before it is spent.

S drawn rows, padded to a multiple of 256; B samples of a micro-step, l labels of each, P pairs of a
sample and a positive row that is here, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ovtrain.config.head import HeadConfig
from ovtrain.heads.losses import margin_terms, mlcd_terms
from ovtrain.ops.buffers import Buffers
from ovtrain.ops.class_kernels import Kernels, Tile
from ovtrain.ops.matmul import mm_float32

PAD = 256
"""Drawn rows are padded to a multiple: a product of a new shape costs more than the padding."""
TILE_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""Logits of one tile: a few MiB that stay in a CPU's caches, and 128 MiB that fill a GPU."""
NOTHING = float("-inf")


@dataclass
class DrawnRows:
    """The rows of one head in one step: ``index`` (S,) of ``rows`` (C, D), which is not copied.
    ``unit`` (S', D), S' >= S padded, and the gradient of it, which micro-steps add to; ``weight``
    (S',) as in ``losses``, 0 on padding; ``inverse`` (S,) inverse norms of the rows, and the
    ``pending`` factors that shorten them."""

    rows: Tensor
    index: Tensor
    unit: Tensor
    inverse: Tensor
    pending: Tensor
    weight: Tensor
    gradient: Tensor
    started: bool = False


@dataclass(frozen=True)
class Targets:
    """What one micro-step's samples want. coefficient (B,): what a sample's sum counts for in the
    step's loss, 0 without labels; pairs (P,) sorted by ``column`` (of the drawn rows), with the
    ``sample``, its label's ``slot``, and ``active`` 0 where the label sits this step out; ``order``
    (P,) sorts them by sample, ``offsets`` (B + 1,) then says whose they are; ``tiles``: first row,
    last row, first pair, last pair of each tile."""

    coefficient: Tensor
    sample: Tensor
    column: Tensor
    slot: Tensor
    active: Tensor
    order: Tensor
    offsets: Tensor
    tiles: list[tuple[int, int, int, int]]
    labels: int


@dataclass
class Statistics:
    """Sums of the exponential losses over this rank's rows: exp(peak) * total (B,) of the negatives
    and the cosines of the positives that are here (B, l), -inf elsewhere; ``last``: the last
    tile."""

    peak: Tensor
    total: Tensor
    positives: Tensor
    last: list[Tensor] = field(default_factory=list[Tensor])


def tile_rows(samples: int, device_type: str) -> int:
    """Rows of a tile for ``samples``."""
    elements = TILE_ELEMENTS.get(device_type, TILE_ELEMENTS["cuda"])
    return max(elements // max(samples, 1) // PAD, 1) * PAD


@dataclass(frozen=True)
class Stream:
    """A resolved ``config``'s loss for embeddings ``e`` (B, D), unit vectors in the products'
    dtype, 0 where a sample is not there."""

    config: HeadConfig
    kernels: Kernels
    buffers: Buffers
    rows: DrawnRows
    targets: Targets
    e: Tensor

    @property
    def scale(self) -> float:
        assert self.config.scale is not None
        return self.config.scale

    @property
    def exponential(self) -> bool:
        """Whether the loss needs ``statistics`` of all ranks before its gradients."""
        return self.config.loss != "logistic"

    def logistic(self) -> tuple[Tensor, Tensor]:
        """Terms of the loss (B,) over this rank's rows, gradient of the embeddings (B, D)."""
        assert self.config.bias is not None
        coefficient, bias = self.targets.coefficient, self.config.bias
        loss = torch.zeros_like(coefficient)
        gradient = self._gradient()
        pulls = torch.zeros_like(self.targets.active)
        for number, (first, last, sample, column, slots) in enumerate(self._tiles()):
            cosines = self._tile(last - first, self.e.dtype)
            torch.mm(self.e, self.rows.unit[first:last].T, out=cosines)
            z = cosines[sample, column].float() * self.scale + bias
            cosines[sample, column] = NOTHING
            tile = Tile(cosines, coefficient, self.rows.weight[first:last], self.scale)
            self.kernels.logistic(tile, bias, loss)
            own = coefficient[sample] * self.targets.active[slots]
            loss.index_add_(0, sample, own * softplus(-z))
            pulls[slots] = -self.scale * own * torch.sigmoid(-z)
            pull, fresh = pulls[slots], number == 0
            self._spend(cosines, (first, last), (sample, column), pull, gradient, fresh=fresh)
        self._pull(pulls, gradient)
        return loss, gradient

    def statistics(self) -> Statistics:
        """The exponential losses' sums over this rank's rows."""
        samples, labels = len(self.e), self.targets.labels
        new = self.targets.coefficient.new_full
        found = Statistics(new((samples,), NOTHING), new((samples,), 0.0), new((0,), 0.0))
        found.positives = new((samples, labels), NOTHING)
        for first, last, sample, column, slots in self._tiles():
            cosines = mm_float32(self.e, self.rows.unit[first:last], self.buffers)
            there = self.targets.active[slots] > 0
            values = cosines[sample, column].masked_fill(~there, NOTHING)
            found.positives[sample, self.targets.slot[slots]] = values
            cosines[sample, column] = NOTHING
            tile = self._exponential_tile(cosines, found.total, first, last)
            self.kernels.statistics(tile, self._ceiling, found.peak, found.total)
            found.last = [cosines]
        return found

    def terms(self, found: Statistics) -> tuple[Tensor, Tensor, Tensor]:
        """From sums over all ranks: loss (B,), and what gradients are made of, push (B,) and pull
        (B, l)."""
        assert self.config.margin is not None
        terms: Callable[..., tuple[Tensor, ...]] = (
            margin_terms if self.config.loss == "margin_softmax" else mlcd_terms
        )
        s = self.scale * (found.positives - self.config.margin)
        loss, push, pull = terms(s, found.peak, found.total)
        coefficient = self.targets.coefficient
        return loss * coefficient, push * coefficient, pull * coefficient[:, None]

    def exponential_gradients(self, found: Statistics, push: Tensor, pull: Tensor) -> Tensor:
        """The gradient of the embeddings (B, D)."""
        gradient = self._gradient()
        pulls = -self.scale * self.targets.active * pull[self.targets.sample, self.targets.slot]
        tiles = self._tiles(backwards=True)
        for number, (first, last, sample, column, slots) in enumerate(tiles):
            if found.last:
                cosines = found.last.pop()
            else:
                cosines = mm_float32(self.e, self.rows.unit[first:last], self.buffers)
                cosines[sample, column] = NOTHING
            out = cosines
            if self.e.dtype != cosines.dtype:
                out = self._tile(last - first, self.e.dtype)
            tile = self._exponential_tile(cosines, push, first, last)
            self.kernels.exponential(tile, self._ceiling, found.peak, out)
            pull, fresh = pulls[slots], number == 0
            self._spend(out, (first, last), (sample, column), pull, gradient, fresh=fresh)
        self._pull(pulls, gradient)
        return gradient

    def _gradient(self) -> Tensor:
        """(B, D) float32, which the first tile fills."""
        return self.buffers.empty("towards", tuple(self.e.shape), torch.float32)

    def _tile(self, columns: int, dtype: torch.dtype) -> Tensor:
        return self.buffers.empty("tile", (len(self.e), columns), dtype)

    @property
    def _ceiling(self) -> float:
        ceiling = self.config.interclass_filter
        return float("inf") if ceiling is None else ceiling

    def _exponential_tile(
        self, cosines: Tensor, coefficient: Tensor, first: int, last: int
    ) -> Tile:
        return Tile(cosines, coefficient, self.rows.weight[first:last], self.scale)

    def _tiles(
        self, *, backwards: bool = False
    ) -> Iterator[tuple[int, int, Tensor, Tensor, slice]]:
        """First and last row of each tile, its pairs (sample, column in the tile), and which of all
        pairs they are."""
        tiles = self.targets.tiles
        for first, last, start, stop in reversed(tiles) if backwards else tiles:
            pairs = slice(start, stop)
            column = self.targets.column[pairs] - first
            yield first, last, self.targets.sample[pairs], column, pairs

    def _spend(
        self,
        tile: Tensor,
        span: tuple[int, int],
        pairs: tuple[Tensor, Tensor],
        pulls: Tensor,
        gradient: Tensor,
        *,
        fresh: bool,
    ) -> None:
        """Add what the tile's gradient (B, T) gives: to the embeddings', which is ``fresh`` before
        the first tile, and, with the positives' ``pulls`` put in, to the rows'."""
        first, last = span
        self._add(gradient, tile, self.rows.unit[first:last], fresh=fresh)
        tile[pairs] = pulls.to(tile.dtype)
        to = self.rows.gradient[first:last]
        self._add(to, tile.T, self.e, fresh=not self.rows.started)

    def _add(self, to: Tensor, a: Tensor, b: Tensor, *, fresh: bool) -> None:
        """to += a @ b (= where it is ``fresh``), in float32 or in the products' dtype."""
        if to.dtype == a.dtype:
            if fresh:
                torch.mm(a, b, out=to)
            else:
                to.addmm_(a, b)
            return
        product = self.buffers.empty("product", tuple(to.shape), a.dtype)
        torch.mm(a, b, out=product)
        if fresh:
            to.copy_(product)
        else:
            to += self.buffers.empty("wide product", tuple(to.shape), to.dtype).copy_(product)

    def _pull(self, pulls: Tensor, gradient: Tensor) -> None:
        """Add the positives' part to the embeddings' gradient, in float32: it is large, lies mostly
        along the embedding, where it does nothing, and would leave its rounding errors behind."""
        rows, targets = self.rows, self.targets
        weight = (pulls * rows.inverse[targets.column])[targets.order]
        index = rows.index[targets.column][targets.order]
        self.kernels.pull(rows.rows, index, weight, targets.offsets, gradient)
        rows.started = True
