"""Exact nearest centers: candidates from bfloat16 products, ranked by float32 distances.

    index = CenterIndex(centers)            # (C, F) float32
    found = index.nearest(points, top)      # (B, F) float16 or float32 -> ids, squared (B, top)
    add_rows(sums, counts, points, ids, shift)

B points, C centers, F width.

What "exact" means: distances are sums of (x - c)^2, taken in float32 in one fixed order
(``nearest_torch.squared_distances``); the result is the ``top`` smallest of all C of them, ties to
the lower id, bit for bit, on every backend, whatever block a point comes in. Every center that is
left out is proved to be farther by the error bound of its approximate score, which covers the
rounding of the operands (Cauchy-Schwarz), of the sums and of the float32 distances themselves. A
row without that proof is searched again, at last through all C distances; ``repeated`` counts such
rows. What remains uncertain is float32 itself: of two centers whose true distances differ by less
than (F / 64 + 10) * 2^-24 of them, either may come first. Values are finite; a distance that is no
number comes last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from ovtrain.ops.nearest_torch import TorchSearch
from ovtrain.schema.errors import ConfigError, InputError

try:
    from ovtrain.ops import _native as extension  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    extension = None
_native: Any = extension

log = logging.getLogger(__name__)

ROWS = 4096
"""Points that ``add_rows`` turns to float64 at a time."""


@dataclass(frozen=True)
class Nearest:
    """ids (B, top) int32, nearest first, ties to the lower id; squared (B, top) float32, squared
    distances; repeated, how many rows had to be searched again."""

    ids: Tensor
    squared: Tensor
    repeated: int


class Search(Protocol):
    def __call__(self, points: Tensor, top: int) -> tuple[Tensor, Tensor, int]:
        """As ``Nearest`` has them, of (B, F) points in a row on the centers' device."""
        ...


class CenterIndex:
    """Centers of one shard, ready to be searched exactly."""

    def __init__(self, centers: Tensor, *, backend: str | None = None) -> None:
        """``centers`` (C, F) float32, which must not change afterwards; ``backend`` one of
        ``BACKENDS``, None for the fastest here.

        InputError for other centers, ConfigError for a backend that this machine cannot run.
        """
        if centers.ndim != 2 or 0 in centers.shape or centers.dtype != torch.float32:
            raise InputError("centers", _told(centers), allowed="(C, F) float32, C and F above 0")
        self.backend = backend or _fastest(centers.device.type)
        self.shape, self.device = centers.shape, centers.device
        self._search = _builder(self.backend, centers.device.type)(centers.detach().contiguous())

    def nearest(self, points: Tensor, top: int) -> Nearest:
        """The ``top`` nearest centers of each of ``points`` (B, F) float16 or float32."""
        count, width = self.shape
        fits = points.ndim == 2 and points.shape[1] == width and points.device == self.device
        if not fits or points.dtype not in (torch.float16, torch.float32):
            allowed = f"(B, {width}) float16 or float32 on {self.device}"
            raise InputError("points", _told(points), allowed=allowed)
        if not 1 <= top <= count:
            raise ConfigError(f"top={top}", f"{count} centers", allowed=f"1 to {count}")
        return Nearest(*self._search(points.detach().contiguous(), top))


def add_rows(sums: Tensor, counts: Tensor, points: Tensor, ids: Tensor, shift: int) -> None:
    """sums (C, F) int64 += points (B, F) * 2^shift, rounded half to even, at ids (B,); counts (C,)
    int64 += 1. Ids outside 0..C-1 are skipped: they are another shard's. Integer sums are exact and
    the same in any order; |points| * 2^shift and their sums must stay below 2^63."""
    if _native_runs(points.device.type):
        points, ids, threads = points.contiguous(), ids.long().contiguous(), torch.get_num_threads()
        _native.add_rows(sums, counts, points, ids, 2.0**shift, threads)
    else:
        _add_rows(sums, counts, points, ids, shift)


def _add_rows(sums: Tensor, counts: Tensor, points: Tensor, ids: Tensor, shift: int) -> None:
    clusters = len(sums)
    for rows, owners in zip(points.split(ROWS), ids.long().split(ROWS), strict=True):
        inside = (owners >= 0) & (owners < clusters)
        owners = owners[inside]
        fixed = (rows[inside].double() * 2.0**shift).round().long()
        sums.index_add_(0, owners, fixed)
        counts.index_add_(0, owners, torch.ones_like(owners))


def _told(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} on {x.device}"


def _torch(centers: Tensor) -> Search:
    return TorchSearch(centers, torch.bfloat16)


def _fp32(centers: Tensor) -> Search:
    return TorchSearch(centers, torch.float32)


class _NativeSearch:
    """The C++ of ``ops/native``, on as many threads as torch uses."""

    def __init__(self, centers: Tensor) -> None:
        count, width = centers.shape
        mean = centers.mean(0, dtype=torch.float64).float()
        bias = torch.empty(_native.panel_columns(count))
        panels = torch.empty(len(bias), (width + 1) // 2, dtype=torch.int32)
        threads = torch.get_num_threads()
        errors = _native.pack_centers(centers, mean, panels, bias, threads)
        self._centers = (centers, mean, panels, bias, *errors)

    def __call__(self, points: Tensor, top: int) -> tuple[Tensor, Tensor, int]:
        ids = torch.empty(len(points), top, dtype=torch.int32)
        squared = torch.empty(len(points), top)
        threads = torch.get_num_threads()
        return ids, squared, _native.nearest(*self._centers, points, ids, squared, threads)


def _triton(centers: Tensor) -> Search:
    from ovtrain.ops.nearest_triton import TritonSearch

    return TritonSearch(centers)


def _native_runs(device_type: str) -> bool:
    return device_type == "cpu" and _native is not None and _native.nearest_runs_here()


BACKENDS: dict[str, Callable[[Tensor], Search]] = {
    "native": _NativeSearch,
    "triton": _triton,
    "torch": _torch,
    "fp32": _fp32,
}


def backends(device_type: str) -> list[str]:
    """Those that run here on "cpu", "cuda", ..., the fastest first."""
    runs = {
        "native": _native_runs(device_type),
        "triton": device_type == "cuda" and find_spec("triton") is not None,
    }
    return [name for name in BACKENDS if runs.get(name, True)]


@cache
def _fastest(device_type: str) -> str:
    chosen = backends(device_type)[0]
    log.info("nearest centers on %s: %s", device_type, chosen)
    return chosen


def _builder(backend: str, device_type: str) -> Callable[[Tensor], Search]:
    here = backends(device_type)
    if backend not in here:
        raise ConfigError(
            f"backend={backend}", f"does not run on {device_type} here", allowed=", ".join(here)
        )
    return BACKENDS[backend]
