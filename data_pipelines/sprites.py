"""Textures of the generated clips: sprites and backgrounds, made straight in YUV.

A look is (S, S, 4) uint8 (y, u, v, alpha) over the square [-EXTENT, EXTENT]^2 in units of the
sprite's radius, so finely sampled that a nearest lookup is sharp. A background is (H, W, 3) uint8.
Luma is drawn directly: light sprites average 190-220, dark ones 40-70, backgrounds lie between.

Training and held-out clips use disjoint hue sectors and stripe periods (``family`` 0 or 1) beside
disjoint seeds, so that no texture is met twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

Tone = Literal["light", "dark"]
TONES: tuple[Tone, Tone] = ("light", "dark")
MEAN_LUMA: dict[Tone, tuple[float, float]] = {"light": (190, 220), "dark": (40, 70)}

TEXELS = 192
EXTENT = 1.15
HUE_SECTORS = 12

Array = npt.NDArray[np.float32]
Texture = npt.NDArray[np.uint8]


def _texel_grid() -> tuple[Array, Array]:
    line = (np.arange(TEXELS, dtype=np.float32) + 0.5) / TEXELS * (2 * EXTENT) - EXTENT
    y, x = np.meshgrid(line, line, indexing="ij")
    return x.astype(np.float32), y.astype(np.float32)


_X, _Y = _texel_grid()
_RHO = np.hypot(_X, _Y)
_THETA = np.arctan2(_Y, _X)


def _disc(theta: Array) -> Array:
    return np.full_like(theta, 0.9)


def _polygon(sides: int) -> Callable[[Array], Array]:
    """Distance of a regular polygon's edge from its centre, corners at 1."""
    half = np.float32(np.pi / sides)

    def edge(theta: Array) -> Array:
        return np.cos(half) / np.cos(np.mod(theta, 2 * half) - half)

    return edge


def _star(theta: Array) -> Array:
    tooth = np.abs(np.mod(theta * np.float32(5 / (2 * np.pi)), 1) - 0.5) * 2
    return (0.55 + 0.45 * tooth).astype(np.float32)


SHAPES: dict[str, Callable[[Array], Array]] = {
    "disc": _disc,
    "triangle": _polygon(3),
    "square": _polygon(4),
    "hexagon": _polygon(6),
    "star": _star,
}


def _chroma(rng: np.random.Generator, family: int, strength: float) -> tuple[float, float]:
    """A random hue of this family's sectors as (u, v) offsets from grey."""
    sector = 2 * rng.integers(HUE_SECTORS // 2) + family
    angle = (sector + rng.uniform(0, 1)) * 2 * np.pi / HUE_SECTORS
    return strength * float(np.cos(angle)), strength * float(np.sin(angle))


def _period(rng: np.random.Generator, family: int) -> float:
    """Stripe period in pixels: 6-8 in family 0, 8.5-11 in family 1."""
    return float(rng.uniform(8.5, 11) if family else rng.uniform(6, 8))


def sprite_look(rng: np.random.Generator, tone: Tone, family: int, radius: float) -> Texture:
    """One appearance: a shape, a tinted sector that shows its rotation, and stripes.

    ``radius`` in pixels sets how soft the edge is and how many stripes fit.
    """
    edge = SHAPES[str(rng.choice(list(SHAPES)))](_THETA + np.float32(rng.uniform(0, 2 * np.pi)))
    alpha = np.clip((edge - _RHO) * radius + 0.5, 0, 1)
    base = rng.uniform(*MEAN_LUMA[tone])
    heading = rng.uniform(0, 2 * np.pi)
    width = rng.uniform(0.3, 0.5) * 2 * np.pi
    sector = np.mod(_THETA + np.float32(heading), 2 * np.pi) < width
    along = np.float32(rng.uniform(0, np.pi))
    phase = (_X * np.cos(along) + _Y * np.sin(along)) * radius / _period(rng, family)
    stripes = np.float32(rng.uniform(7, 12)) * np.sin(2 * np.pi * phase)
    # The sector is lighter or darker by `tint`; the rest compensates, so the mean stays at base.
    tint = rng.uniform(34, 42) * (1 if rng.random() < 0.5 else -1)
    share = width / (2 * np.pi)
    luma = base + stripes + np.where(sector, tint * (1 - share), -tint * share)
    plain, tinted = (_chroma(rng, family, rng.uniform(18, 40)) for _ in range(2))
    u = 128 + np.where(sector, tinted[0], plain[0])
    v = 128 + np.where(sector, tinted[1], plain[1])
    return _quantise(np.stack([luma, u, v, alpha * 255], axis=-1))


def _quantise(planes: npt.NDArray[np.floating]) -> Texture:
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, side: int, cells: int) -> Array:
    """(side, side) noise of unit deviation, smooth on the scale side / cells."""
    at = np.linspace(0, cells - 1, side)[:, None]
    weights = np.exp(-2.0 * (at - np.arange(cells)) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    noise = weights @ rng.standard_normal((cells, cells)) @ weights.T
    return (noise / max(noise.std(), 1e-6)).astype(np.float32)


def _waves(rng: np.random.Generator, side: int, family: int) -> tuple[Array, Array]:
    """Two sinusoids at right angles, -1 to 1; their product's sign gives checks."""
    line = np.arange(side, dtype=np.float32)
    y, x = np.meshgrid(line, line, indexing="ij")
    angle, period = rng.uniform(0, np.pi), 2 * _period(rng, family)
    along = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
    across = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)
    return np.sin(along).astype(np.float32), np.sin(across).astype(np.float32)


def background(rng: np.random.Generator, side: int, family: int) -> Texture:
    """(side, side, 3) mid-luma texture: smooth noise, stripes or checks, in two hues."""
    kind = rng.integers(3)
    if kind == 0:
        pattern = 0.6 * _smooth_noise(rng, side, int(rng.integers(8, 15) + family * 8))
    else:
        stripes, across = _waves(rng, side, family)
        pattern = stripes if kind == 1 else np.tanh(3 * stripes * across)
    pattern = np.clip(pattern, -1.3, 1.3) + 0.25 * _smooth_noise(rng, side, 6)
    luma = rng.uniform(115, 140) + rng.uniform(9, 16) * pattern
    (u0, v0), (u1, v1) = (_chroma(rng, family, rng.uniform(5, 22)) for _ in range(2))
    blend = np.clip(0.5 + 0.5 * pattern, 0, 1)
    u = 128 + u0 + (u1 - u0) * blend
    v = 128 + v0 + (v1 - v0) * blend
    return _quantise(np.stack([luma, u, v], axis=-1))
