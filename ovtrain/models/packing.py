"""What the encoder's callers may give it, and how a bag is put in order for attention.

N tokens, B samples, p patch side.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ovtrain.ops.varlen_attention import Sequences
from ovtrain.schema.errors import InputError


def check_packed(
    patches: Tensor,
    positions: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    group_id: Tensor | None,
    patch: int,
    frames: int | None,
    *,
    everywhere: bool = False,
) -> None:
    """Raise InputError, a ValueError, where a call of the encoder breaks a rule. Values are read on
    the CPU only, since to read them on a GPU makes it wait, unless ``everywhere`` says so."""
    count = len(patches)
    _shape("patches", patches, (count, 3 * patch * patch), "a row of 3 * patch * patch per token")
    if patches.dtype != torch.uint8 and not patches.is_floating_point():
        raise InputError("patches", f"are {patches.dtype}", allowed="uint8, or floats normalised")
    _shape("positions", positions, (count, 3), "(t, h, w) per token")
    if group_id is not None:
        _shape("group_id", group_id, (count,), "one per token")
    whole = cu_seqlens.dtype in (torch.int32, torch.int64)
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or not whole:
        found = f"{tuple(cu_seqlens.shape)} {cu_seqlens.dtype}"
        raise InputError("cu_seqlens", found, allowed="(samples + 1,) int32, at least one sample")
    if _readable(cu_seqlens, everywhere):
        _check_bounds(cu_seqlens.tolist(), count, max_seqlen)
    if _readable(positions, everywhere):
        _check_positions(positions, frames)


def _readable(tensor: Tensor, everywhere: bool) -> bool:
    return tensor.device.type == "cpu" or (everywhere and tensor.device.type != "meta")


def _shape(name: str, tensor: Tensor, allowed: tuple[int, ...], meaning: str) -> None:
    if tuple(tensor.shape) != allowed:
        raise InputError(name, f"shape {tuple(tensor.shape)}", allowed=f"{allowed}, {meaning}")


def _check_bounds(bounds: list[int], count: int, max_seqlen: int) -> None:
    if bounds[0] != 0:
        raise InputError("cu_seqlens", f"starts at {bounds[0]}", allowed="0")
    lengths = [b - a for a, b in pairwise(bounds)]
    for i, length in enumerate(lengths):
        if length < 1:
            found = f"sample {i} has {length} tokens (rows {bounds[i]} to {bounds[i + 1]})"
            raise InputError("cu_seqlens", found, allowed="rising: at least one token per sample")
    if bounds[-1] != count:
        found = f"ends at {bounds[-1]}"
        raise InputError("cu_seqlens", found, allowed=f"{count}, the number of tokens")
    if max_seqlen < max(lengths):
        found = f"{max_seqlen}, but a sample has {max(lengths)} tokens"
        raise InputError("max_seqlen", found, allowed=f"{max(lengths)} or more")


def _check_positions(positions: Tensor, frames: int | None) -> None:
    limits = (float("inf") if frames is None else frames, float("inf"), float("inf"))
    for axis, (name, limit) in enumerate(zip("thw", limits, strict=True)):
        column = positions[:, axis]
        outside = ~((column >= 0) & (column < limit))
        if outside.any():
            row = int(outside.nonzero()[0])
            allowed = "0 or more" if limit == float("inf") else f"0 to {limit - 1}"
            fix = "put the frames on the virtual grid first" if name == "t" else ""
            found = f"{name}={column[row].item():g} in row {row}"
            raise InputError("positions", found, allowed=allowed, fix=fix)


@dataclass(frozen=True)
class Arrangement:
    """``order`` (N,): the tokens' order in which every group and every window is one run of rows;
    None where they have it already. ``whole``: samples cut into groups; ``windows``: those cut into
    temporal windows, None without them."""

    order: Tensor | None
    whole: Sequences
    windows: Sequences | None

    def restore(self, tokens: Tensor) -> Tensor:
        """Arranged tokens (N, D) in the caller's order."""
        return tokens if self.order is None else tokens[self.order.argsort()]


def arrange(
    samples: Sequences, group_id: Tensor | None, t: Tensor, window_frames: int
) -> Arrangement:
    """Cut ``samples`` into runs of equal ``group_id`` (N,) and, in those, of equal
    ``t // window_frames`` (0: no windows): what may attend to what is said by bounds alone."""
    if group_id is None and not window_frames:
        return Arrangement(None, samples, None)
    cu = samples.bounds
    number = torch.arange(len(samples), device=cu.device)
    key = torch.repeat_interleave(number, cu.diff(), output_size=len(t))
    if group_id is not None:
        groups, group = group_id.unique(return_inverse=True)
        key = key * len(groups) + group
    window = (t // window_frames).long() if window_frames else torch.zeros_like(key)
    most = int(window.max()) + 1
    key = key * most + window
    order = key.argsort(stable=True)
    key = key[order]
    if torch.equal(order, torch.arange(len(order), device=order.device)):
        order = None
    windows = _runs(key, samples.longest) if window_frames else None
    return Arrangement(order, _runs(key // most, samples.longest), windows)


def _runs(key: Tensor, longest: int) -> Sequences:
    counts = key.unique_consecutive(return_counts=True)[1]
    bounds = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    return Sequences(bounds, longest)


def attended_pairs(
    samples: Sequences, group_id: Tensor | None, t: Tensor, window_frames: int, windowed: float
) -> Tensor:
    """(B,) pairs of tokens that attend to one another, as a mean over blocks of which a share
    ``windowed`` stays inside windows; what attention costs (``ovtrain.costs.encoder``)."""
    whole = _pairs(samples, arrange(samples, group_id, t, 0).whole)
    inside = arrange(samples, group_id, t, window_frames).windows
    return whole if inside is None else whole + windowed * (_pairs(samples, inside) - whole)


def _pairs(samples: Sequences, runs: Sequences) -> Tensor:
    ends = torch.nn.functional.pad(runs.bounds.diff().double().square().cumsum(0), (1, 0))
    return ends[torch.searchsorted(runs.bounds, samples.bounds)].diff()
