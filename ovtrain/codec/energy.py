"""Codec signals -> energy per patch, the score that tokens are chosen by (paper sections 2.1, 8).

Per predicted frame, P95 being a percentile over its pixels:

    R = clip(|residual| / max(P95(|residual|), 1), 0, 1)
    M = clip(|v| / max(P95(|v|), 1e-6), 0, 1)        v from ``motion``, in pixels
    H = (w_motion M + w_residual R) / (w_motion + w_residual)

and the energy of a patch is the mean of H over its pixels, kept as uint16 (65,535 = 1.0). Signals
of another size than the grid's are averaged by area over the pixels that "short side resized,
centre cropped" maps to each patch. With ``normalise: clip`` the percentiles are the clip's and all
its signals are held in memory meanwhile.

A frame that is natively intra has no motion of its own, and a damaged one (``parse_ok=False``) none
to trust: each takes the energy of the nearest predicted frame, the later one where two are as near.
Where frames are skipped, their energies add to the next frame taken, and the clip is divided by the
largest number added, which keeps the order and [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from ovtrain.codec.bitstream import CodecSignals
from ovtrain.codec.kernels import patch_means
from ovtrain.codec.motion import motion_field
from ovtrain.config.prepare import EnergyConfig
from ovtrain.schema.errors import CodecError
from ovtrain.schema.grid import PatchGrid

FULL_SCALE = 65535
MIN_MOTION, MIN_RESIDUAL = 1e-6, 1.0

EnergyMap = npt.NDArray[np.uint16]
FloatArray = npt.NDArray[np.float32]
Edges = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClipEnergy:
    """map (T, H/p, W/p) uint16; intra, damaged: how many of the T frames are natively so."""

    map: EnergyMap
    intra: int
    damaged: int


@dataclass(frozen=True)
class VideoEnergy:
    """energy (F, H/p, W/p) float32 in [0, 1] of F consecutive frames; intra, damaged (F,) bool."""

    energy: FloatArray
    intra: npt.NDArray[np.bool_]
    damaged: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.energy)

    def clip(self, frame_indices: Sequence[int], *, accumulate: bool = True) -> ClipEnergy:
        """The energy of frames taken in rising order. Raises CodecError."""
        taken = list(frame_indices)
        if not taken or taken != sorted(taken) or taken[0] < 0:
            raise CodecError("frame_indices", f"{len(taken)} indices", allowed="rising from 0")
        if taken[-1] >= len(self):
            found = f"{len(self)} frames; frame {taken[-1]} is asked for"
            fix = "take a shorter clip or leave the file out"
            raise CodecError("codec signals", found, fix=fix)
        energy = _gathered(self.energy, taken) if accumulate else self.energy[taken]
        return ClipEnergy(
            np.rint(energy * FULL_SCALE).astype(np.uint16),
            int(self.intra[taken].sum()),
            int(self.damaged[taken].sum()),
        )


def measure_video(
    source: Iterable[CodecSignals], grid: PatchGrid, config: EnergyConfig
) -> VideoEnergy:
    """Energy of every frame of ``source`` on the patches of one frame of ``grid``. It holds one
    frame of signals at a time (with ``normalise: clip`` all of them)."""
    intra: list[bool] = []
    damaged: list[bool] = []

    def noted() -> Iterator[CodecSignals]:
        for signals in source:
            intra.append(signals.type == "I")
            damaged.append(not signals.parse_ok)
            yield signals

    energies = list(_energies(noted(), grid, config))
    whole = _from_neighbours(energies, grid)
    return VideoEnergy(whole, np.array(intra, np.bool_), np.array(damaged, np.bool_))


def measure_clip(
    source: Iterable[CodecSignals],
    grid: PatchGrid,
    config: EnergyConfig,
    *,
    frame_indices: Sequence[int] | None = None,
    accumulate: bool = True,
) -> ClipEnergy:
    """Energy of ``grid.frames`` frames of ``source`` and what stands behind it.

    ``frame_indices``: the frames taken, in rising order; None = the first ``grid.frames``. Nothing
    beyond the last of them is read. Raises CodecError where the source ends before.
    """
    taken = list(range(grid.frames)) if frame_indices is None else list(frame_indices)
    if len(taken) != grid.frames:
        found = f"{len(taken)} indices for {grid.frames} frames"
        raise CodecError("frame_indices", found, allowed="one per frame, rising from 0")
    read = islice(source, max(taken) + 1)
    return measure_video(read, grid, config).clip(taken, accumulate=accumulate)


def clip_energy(
    source: Iterable[CodecSignals],
    grid: PatchGrid,
    config: EnergyConfig,
    *,
    frame_indices: Sequence[int] | None = None,
    accumulate: bool = True,
) -> EnergyMap:
    """The ``map`` of ``measure_clip``."""
    return measure_clip(
        source, grid, config, frame_indices=frame_indices, accumulate=accumulate
    ).map


@dataclass(frozen=True)
class _Raw:
    """One predicted frame: |v| (h4, w4) float32 in pixels, |residual| (H, W) uint16."""

    motion: FloatArray
    residual: npt.NDArray[np.uint16]


def _raw(signals: CodecSignals, config: EnergyConfig) -> _Raw | None:
    if signals.type == "I" or not signals.parse_ok:
        return None
    field = motion_field(signals, config)
    # |-32768| has no int16 of its own; read as uint16 its bits are right.
    residual = np.abs(signals.residual).view(np.uint16)
    return _Raw(np.sqrt(field[..., 0] ** 2 + field[..., 1] ** 2), residual)


def _energies(
    frames: Iterable[CodecSignals], grid: PatchGrid, config: EnergyConfig
) -> Iterator[FloatArray | None]:
    """(H/p, W/p) energy in [0, 1] of each frame; None where a frame has none of its own."""
    raws = (_raw(signals, config) for signals in frames)
    scales = None
    if config.normalise == "clip":
        raws = list(raws)
        scales = _scales([raw for raw in raws if raw], config.percentile)
    for raw in raws:
        if raw is None:
            yield None
        else:
            yield _score(raw, scales or _scales([raw], config.percentile), grid, config)


def _score(
    raw: _Raw, scales: tuple[float, float], grid: PatchGrid, config: EnergyConfig
) -> FloatArray:
    motion = np.minimum(raw.motion * np.float32(1 / scales[0]), np.float32(1))
    residual = np.minimum(raw.residual * np.float32(1 / scales[1]), np.float32(1))
    rows, columns = patch_edges(grid, *raw.residual.shape)
    total = config.motion_weight * patch_means(motion, rows / 4, columns / 4)
    total += config.residual_weight * patch_means(residual, rows, columns)
    return total / np.float32(config.motion_weight + config.residual_weight)


def patch_edges(grid: PatchGrid, height: int, width: int) -> tuple[Edges, Edges]:
    """Borders of the patches, (H/p + 1,) and (W/p + 1,), in pixels of a height x width frame.

    The frame is scaled until it covers the grid's picture and cropped at its centre.
    """
    sides = (grid.height * grid.patch, grid.width * grid.patch)
    scale = max(sides[0] / height, sides[1] / width)
    edges: list[Edges] = []
    for side, length in zip(sides, (height, width), strict=True):
        resized = max(side, round(length * scale))
        start = (resized - side) // 2
        borders = start + np.arange(0, side + 1, grid.patch, dtype=np.float64)
        edges.append(borders * (length / resized))
    return edges[0], edges[1]


def _scales(raws: Sequence[_Raw], percentile: float) -> tuple[float, float]:
    """Percentiles over pixels of |v| and |residual|, with the formula's floors."""
    if not raws:
        return MIN_MOTION, MIN_RESIDUAL
    motion = np.concatenate([raw.motion.ravel() for raw in raws])
    pixels = np.concatenate([_block_pixels(*raw.residual.shape) for raw in raws])
    order = np.argsort(motion)
    levels = [np.bincount(raw.residual.ravel()) for raw in raws]
    counts = np.zeros(max(map(len, levels)), np.int64)
    for level in levels:
        counts[: len(level)] += level
    return (
        max(_percentile(motion[order], pixels[order], percentile), MIN_MOTION),
        max(_percentile(np.arange(len(counts)), counts, percentile), MIN_RESIDUAL),
    )


def _block_pixels(height: int, width: int) -> npt.NDArray[np.int64]:
    """(h4 * w4,) pixels each 4 x 4 block has inside the picture."""
    rows = np.minimum(4, height - np.arange(0, height, 4))
    return np.outer(rows, np.minimum(4, width - np.arange(0, width, 4))).ravel()


def _percentile(
    values: npt.NDArray[np.generic], counts: npt.NDArray[np.int64], percentile: float
) -> float:
    """Linear percentile of rising ``values``, each standing ``counts`` times."""
    ends = np.cumsum(counts)
    rank = percentile / 100 * (int(ends[-1]) - 1)
    low = int(rank)
    below, above = values[
        np.searchsorted(ends, [low, min(low + 1, int(ends[-1]) - 1)], side="right")
    ].astype(np.float64)
    return float(below + (above - below) * (rank - low))


def _from_neighbours(energies: Sequence[FloatArray | None], grid: PatchGrid) -> FloatArray:
    """(frames, H/p, W/p), each None replaced by its nearest neighbour; 0 where there is none."""
    whole = np.zeros((len(energies), grid.height, grid.width), np.float32)
    own = np.array([i for i, energy in enumerate(energies) if energy is not None], dtype=np.int64)
    for i in range(len(energies) if len(own) else 0):
        nearest = own[len(own) - 1 - np.argmin(np.abs(own[::-1] - i))]
        whole[i] = energies[nearest]
    return whole


def _gathered(energies: FloatArray, taken: Sequence[int]) -> FloatArray:
    """Sums of the frames up to and with each taken one, over the most that were added."""
    first = [0, *(index + 1 for index in taken[:-1])]
    spans = [(min(a, b), b + 1) for a, b in zip(first, taken, strict=True)]
    sums = np.stack([energies[a:b].sum(axis=0) for a, b in spans])
    longest = max(b - a for a, b in spans)
    return np.asarray(sums / longest, np.float32)
