"""A handcrafted appearance-and-motion descriptor. DEMO ONLY: no weights, nothing learned.

It lets the whole story run on a laptop. Labels made with it say how things move in front of a
camera that may pan, hardly what they are. It sees decoded pixels and nothing else.

Video (T >= 16 frames): ``clustering.motion_fit`` measures the motion between neighbouring frames
and, for what is slow, between means of T / 16 frames; blocks of features with fixed scales follow
(``_motion_blocks``), their numbers held to about -1 to 1, so that no single one decides a distance.
Image (T = 1): colour and orientation histograms of a 2 x 2 grid.

Shape legend: T frames, n frame pairs, S = 56 pixels, F features.
Errors: ConfigError on clips of fewer than 16 frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from PIL import Image

from clustering.motion_fit import SIDE, Array, Motion, blur, measure
from clustering.teachers import Features, Frames
from ovtrain.schema.errors import ConfigError
from ovtrain.schema.sample import Kind

NAME = "descriptor-demo-only"
SLOW_FRAMES = 16
STILL = 300.0
"""Motion energy (grey levels summed over pixels) below which averages shrink towards 0."""
FAST_SPEED, SLOW_SPEED = 0.3, 0.9
FAST_TURN, SLOW_TURN = 0.02, 0.04
LUMA = np.array([0.25, 0.5, 0.25], dtype=np.float32)
HISTOGRAM, ORIENTATIONS = 8, 8


class DescriptorTeacher:
    """Teacher of the demo; ``name`` says what it is wherever its labels go."""

    def __init__(self, kind: Kind, threads: int = 1) -> None:
        self.kind: Kind = kind
        self.threads = threads
        self.arrays: Mapping[str, Array] = {}
        self.name = f"{NAME}:{kind}"
        frames = SLOW_FRAMES if kind == "video" else 1
        self.width = len(self._one(np.zeros((frames, SIDE, SIDE, 3), dtype=np.uint8)))

    def indices(self, frames: int) -> list[int] | None:
        if self.kind == "video" and frames < SLOW_FRAMES:
            raise ConfigError(
                "teacher=descriptor",
                f"clips of {frames} frames",
                allowed=f"{SLOW_FRAMES} or more",
                fix="prepare longer clips or use teacher=clip",
            )
        return None

    def features(self, samples: Sequence[Frames]) -> Features:
        with ThreadPoolExecutor(self.threads) as pool:  # numpy releases the GIL
            return np.stack(list(pool.map(self._one, samples)))

    def _one(self, frames: Frames) -> Array:
        return image_descriptor(frames[0]) if self.kind != "video" else video_descriptor(frames)


def video_descriptor(frames: Frames) -> Array:
    """(T, H, W, 3) uint8, T >= 16 -> (F,) float32."""
    luma = luma_grid(frames)
    smooth = blur(luma)
    group = len(smooth) // SLOW_FRAMES
    slow = smooth[: group * SLOW_FRAMES].reshape(SLOW_FRAMES, group, SIDE, SIDE).mean(axis=1)
    fast = measure(smooth)
    blocks = [
        *_motion_blocks(fast, FAST_SPEED, FAST_TURN),
        *_motion_blocks(measure(slow), SLOW_SPEED, SLOW_TURN),
        (1.0, _oscillation(fast)),
        (0.15, _appearance(luma.mean(axis=0))),
    ]
    return np.concatenate([weight * block.ravel() for weight, block in blocks]).astype(np.float32)


def _motion_blocks(motion: Motion, speed: float, turn: float) -> list[tuple[float, Array]]:
    """(weight, block) pairs. ``speed`` (pixels) and ``turn`` are the half-way points of the squash.

    Weights are high for what does not depend on where or when the motion happens.
    """
    mass = motion.mass
    total = mass.sum() + STILL
    shift = squash(motion.flow[:, :2], speed)
    centre = motion.centre - (motion.centre * mass[:, None]).sum(0) / total
    arm = squash(centre, 4.0)
    radius = motion.radius - (motion.radius * mass).sum() / total
    ranked = np.cumsum(np.sort(mass)[::-1]) / total
    return [
        (0.5, np.log1p(mass.mean(keepdims=True) / 50) / 2),
        (1.0, ranked[[0, 1, 3, 7, 11]]),  # short events fill the first places
        (0.6, _spans(mass, 8) / total),
        (0.5, _mean(shift, mass, 4)),
        (1.2, _mean(shift, mass, 1)),
        (1.0, _mean(np.abs(shift), mass, 1)),
        (1.3, _mean(squash(motion.flow[:, 2:], turn), mass, 2)),  # divergence, curl
        (1.0, _mean(arm[:, 0] * shift[:, 1] - arm[:, 1] * shift[:, 0], mass, 2)),  # orbit sense
        (0.4, _spans(motion.tone, 8) / (_spans(mass, 8) + STILL)),  # light or dark, and when
        (1.0, _spans(motion.tone, 2) / (_spans(mass, 2) + STILL)),
        (0.3, _mean(centre / 10, mass, 8)),
        (0.3, _mean(radius / 4, mass, 8)),
    ]


def squash(value: Array, half: float) -> Array:
    """To -1 .. 1, +-0.5 at +-``half``."""
    return value / (np.abs(value) + half)


def _spans(value: Array, count: int) -> Array:
    """(n, ...) -> (count, ...) sums over equal spans of time."""
    return np.stack([part.sum(axis=0) for part in np.array_split(value, count)])


def _mean(value: Array, mass: Array, count: int) -> Array:
    """Energy-weighted means over ``count`` spans, near 0 where nothing moves."""
    value = value.reshape(len(mass), -1)
    return _spans(value * mass[:, None], count) / (_spans(mass, count)[:, None] + STILL)


def _oscillation(motion: Motion) -> Array:
    """(4, 2) amplitudes of the x and y speed in four bands of frequency."""
    moving = motion.mass / (motion.mass + STILL / 3)
    speed = squash(motion.flow[:, :2], FAST_SPEED) * moving[:, None]
    frames = len(speed) + 1
    power = np.abs(np.fft.rfft(speed, n=frames, axis=0)) ** 2 / (frames * frames / 2)
    bands = (power[1:3], power[3:7], power[7:16], power[16:])
    return 2 * np.sqrt(np.stack([band.sum(axis=0) for band in bands]))


def _appearance(mean: Array) -> Array:
    """(18,) mean, contrast and a 4 x 4 thumbnail of the mean picture."""
    thumbnail = mean.reshape(4, SIDE // 4, 4, SIDE // 4).mean(axis=(1, 3)).ravel() / 100
    return np.concatenate([[mean.mean() / 100, mean.std() / 50], thumbnail])


@lru_cache(maxsize=16)
def _area(length: int) -> Array:
    """(S, length) weights of area averaging (of interpolation where ``length`` is below S)."""
    edges = np.arange(SIDE + 1) * length / SIDE
    cells = np.arange(length)
    low = np.maximum(edges[:-1, None], cells)
    high = np.minimum(edges[1:, None], cells + 1)
    return (np.clip(high - low, 0, None) * SIDE / length).astype(np.float32)


def luma_grid(frames: Frames) -> Array:
    """(T, H, W, 3) uint8 -> (T, S, S) luma, 0 to 255. One product weighs channels and columns."""
    count, height, width, _ = frames.shape
    across = (_area(width).T[:, None] * LUMA[:, None]).reshape(width * 3, SIDE)
    rows = frames.reshape(count * height, width * 3).astype(np.float32) @ across
    return _area(height) @ rows.reshape(count, height, SIDE)


def image_descriptor(picture: Frames) -> Array:
    """(H, W, 3) uint8 -> (128,) float32: square roots of histograms per cell of a 2 x 2 grid."""
    small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX)
    red, green, blue = np.moveaxis(np.asarray(small, dtype=np.float32), -1, 0)
    luma = (red + 2 * green + blue) / 4
    down, right = np.gradient(luma)
    angle = np.arctan2(down, right) % np.pi / np.pi
    planes = [luma / 256, (red - green) / 512 + 0.5, (blue - green) / 512 + 0.5]
    strength = np.hypot(down, right)
    parts = [_cells(plane, np.ones_like(luma), HISTOGRAM) for plane in planes]
    parts.append(_cells(angle, strength, ORIENTATIONS))
    return np.sqrt(np.concatenate(parts)).astype(np.float32)


def _cells(value: Array, weight: Array, bins: int) -> Array:
    """(4 * bins,) histograms of ``value`` in 0 .. 1 per quarter; each sums to 1."""
    bin_of = np.clip((value * bins).astype(np.int64), 0, bins - 1)
    half = np.arange(SIDE) // (SIDE // 2)
    cell = (half[:, None] * 2 + half) * bins + bin_of
    table = np.bincount(cell.ravel(), weight.ravel(), minlength=4 * bins).reshape(4, bins)
    return (table / (table.sum(axis=1, keepdims=True) + 1e-6)).astype(np.float32).ravel()
