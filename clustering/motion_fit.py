"""What moves in a short luma clip, and how, frame pair by frame pair, all pairs at once.

The optical-flow equation Ix vx + Iy vy + It = 0 (Lucas and Kanade 1981) is fitted twice by least
squares: over the whole picture, robustly, for the camera's shift; then over the moving region for
its shift, divergence and curl about its centre. A pixel moves when neither a still camera nor the
fitted camera shift explains its change, so that still things in front of a panning background do
not count.

Shape legend: n = T - 1 frame pairs, S = 56, P = S*S pixels. y points down, so positive curl is
clockwise. Units: pixels of the S grid per frame pair, grey levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SIDE = 56
NOISE = 2.5
"""Grey levels of change that camera noise and coding make by themselves."""
ROUNDS = 3
CAMERA_RIDGE = 50.0
REGION_RIDGE = np.array([200.0, 200.0, 20_000.0, 20_000.0], dtype=np.float32)
"""Pulls the fit to 0 where the region has hardly any gradient (squared grey levels)."""
TONE_RANGE = 50.0

Array = npt.NDArray[np.floating[Any]]


def _band(weights: dict[int, float], *, normalise: bool) -> Array:
    """(S, S) matrix that filters a row with ``weights`` (offset -> weight)."""
    matrix = sum(w * np.eye(SIDE, k=k, dtype=np.float32) for k, w in weights.items())
    matrix = np.asarray(matrix, dtype=np.float32)
    return matrix / matrix.sum(axis=1, keepdims=True) if normalise else matrix


_SMOOTH = _band({-1: 0.25, 0: 0.5, 1: 0.25}, normalise=True)
_WIDEN = _band(dict.fromkeys(range(-2, 3), 1.0), normalise=True)
_SLOPE = _band({1: 0.5, -1: -0.5}, normalise=False)
_SLOPE[[0, -1]] = 0  # no neighbour on one side
_LINE = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
_X, _Y = (np.ascontiguousarray(a).ravel() for a in np.meshgrid(_LINE, _LINE))


@dataclass(frozen=True)
class Motion:
    """Per frame pair: mass (n,) energy of the motion; flow (n, 4) = vx, vy, divergence, curl of the
    moving region; centre (n, 2) and radius (n,) of it; tone (n,) energy-weighted brightness of it
    about the picture's mean; camera (n, 2) shift of the background."""

    mass: Array
    flow: Array
    centre: Array
    radius: Array
    tone: Array
    camera: Array


def blur(pictures: Array, kernel: Array = _SMOOTH) -> Array:
    """(n, S, S) filtered along both axes."""
    return kernel @ pictures @ kernel.T


def measure(luma: Array) -> Motion:
    """(T, S, S) smoothed luma -> Motion of its T - 1 frame pairs."""
    pairs = len(luma) - 1
    between = (luma[1:] + luma[:-1]) / 2
    slopes = np.stack([between @ _SLOPE.T, _SLOPE @ between], axis=1).reshape(pairs, 2, -1)
    change = (luma[1:] - luma[:-1]).reshape(pairs, -1)
    camera, unexplained = _camera(slopes, change)
    energy = np.maximum(np.minimum(np.abs(unexplained), np.abs(change)) - NOISE, 0)
    region = blur(energy.reshape(pairs, SIDE, SIDE), _WIDEN).reshape(pairs, -1)
    region /= region + 1
    area = region.sum(axis=1) + 1e-3
    centre = np.stack([_three(region @ _X), _three(region @ _Y)], axis=1) / _three(area)[:, None]
    right, down = _X - centre[:, :1], _Y - centre[:, 1:]
    radius = np.sqrt((region * (right**2 + down**2)).sum(axis=1) / area)
    bright = np.clip((between.reshape(pairs, -1) - between.mean()) / TONE_RANGE, -1.5, 1.5)
    return Motion(
        mass=energy.sum(axis=1),
        flow=_region_flow(slopes, change, region, right, down),
        centre=centre,
        radius=radius,
        tone=(energy * bright).sum(axis=1),
        camera=camera,
    )


def _three(value: Array) -> Array:
    """(n,) sums over each pair and its neighbours: one pair's centre is noisy."""
    return np.convolve(value, np.ones(3, dtype=np.float32), "same")


def _camera(slopes: Array, change: Array) -> tuple[Array, Array]:
    """Shift (n, 2) and what it leaves unexplained (n, P); outliers lose weight in each round."""
    weight = 1 / (1 + (change / 6) ** 2)
    camera, left = np.zeros((len(change), 2), dtype=np.float32), change
    for _ in range(ROUNDS):
        camera = _fit(slopes, change, weight, np.full(2, CAMERA_RIDGE, dtype=np.float32))
        left = change + (camera[:, None] @ slopes)[:, 0]
        weight = 1 / (1 + (left / 4) ** 2) ** 2
    return camera, left


def _region_flow(slopes: Array, change: Array, region: Array, right: Array, down: Array) -> Array:
    """(n, 4) flow (vx, vy) + divergence * (x, y) + curl * (-y, x) that explains the region."""
    across, along = slopes[:, 0], slopes[:, 1]
    grow = across * right + along * down
    turn = along * right - across * down
    return _fit(np.stack([across, along, grow, turn], axis=1), change, region, REGION_RIDGE)


def _fit(basis: Array, change: Array, weight: Array, ridge: Array) -> Array:
    """Weighted least squares of basis.T v = -change: (n, k, P), (n, P), (n, P) -> v (n, k)."""
    weighted = basis * weight[:, None]
    normal = weighted @ basis.transpose(0, 2, 1) + np.diag(ridge)
    right_side = -(weighted @ change[..., None])
    return np.linalg.solve(normal, right_side)[..., 0]
