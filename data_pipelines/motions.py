"""The 28 motion classes of the generated clips, as offsets of a sprite's pose over time.

A pose is (x, y, angle, log scale): pixels with y downwards, radians clockwise. Every motion is
drawn freely and then shifted so that its offset at the middle frame is zero: the state at the
middle is drawn before and without the class, so the middle frame cannot tell it.

Thirteen motions of either sprite, and the order in which the two change their looks. Which of the
two sprites moves, the sense of a spin and the order of the changes need pixels; the path of the
mover is in the positions of the patches that carry energy.

offsets: (T, 4) float64. ``unit`` scales pixels: 1 at 112 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipelines.sprites import TONES, Tone

Offsets = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, npt.NDArray[np.float64], float], Offsets]
"""(rng, u (T,) from 0 to 1, unit) -> offsets."""

FULL_TURN = 2 * np.pi


def _offsets(u: npt.NDArray[np.float64], **columns: npt.NDArray[np.float64]) -> Offsets:
    names = ("x", "y", "angle", "scale")
    return np.stack([columns.get(name, np.zeros_like(u)) for name in names], axis=-1)


def _sweep(dx: int, dy: int) -> Draw:
    """Monotonic travel of 30 to 50 pixels, faster at one end: the middle is not half way."""

    def draw(rng: np.random.Generator, u: npt.NDArray[np.float64], unit: float) -> Offsets:
        travel = rng.uniform(42, 56) * unit
        bend = np.exp(rng.uniform(-2, 2))
        path = travel * u / (u + bend * (1 - u))
        return _offsets(u, x=dx * path, y=dy * path)

    return draw


def _zoom(sign: int) -> Draw:
    """Growth or shrinkage by 2.2 to 3 over the clip."""

    def draw(rng: np.random.Generator, u: npt.NDArray[np.float64], unit: float) -> Offsets:
        return _offsets(u, scale=sign * rng.uniform(np.log(2.2), np.log(3.0)) * u)

    return draw


def _orbit(sense: int) -> Draw:
    """One to two turns round a circle of 14 to 18 pixels; the sprite itself does not turn."""

    def draw(rng: np.random.Generator, u: npt.NDArray[np.float64], unit: float) -> Offsets:
        radius = rng.uniform(14, 18) * unit
        phase = rng.uniform(0, FULL_TURN) + sense * rng.uniform(1, 2) * FULL_TURN * u
        return _offsets(u, x=radius * np.cos(phase), y=radius * np.sin(phase))

    return draw


def _spin(sense: int) -> Draw:
    def draw(rng: np.random.Generator, u: npt.NDArray[np.float64], unit: float) -> Offsets:
        return _offsets(u, angle=sense * rng.uniform(1.5, 2.5) * FULL_TURN * u)

    return draw


def _oscillate(axis: str) -> Draw:
    """Three to five swings of 9 to 13 pixels amplitude."""

    def draw(rng: np.random.Generator, u: npt.NDArray[np.float64], unit: float) -> Offsets:
        phase = rng.uniform(0, FULL_TURN) + rng.uniform(3, 5) * FULL_TURN * u
        return _offsets(u, **{axis: rng.uniform(9, 13) * unit * np.sin(phase)})

    return draw


def _hop(rng: np.random.Generator, u: npt.NDArray[np.float64], unit: float) -> Offsets:
    """Up (or down) and back within an eighth of the clip, away from its middle."""
    length = rng.uniform(0.11, 0.15)
    start = rng.uniform(0.05, 0.48 - length) + (0.5 if rng.random() < 0.5 else 0.0)
    inside = np.clip((u - start) / length, 0, 1)
    height = rng.uniform(20, 28) * unit * (1 if rng.random() < 0.3 else -1)
    return _offsets(u, y=height * np.sin(np.pi * inside))


def _still(rng: np.random.Generator, u: npt.NDArray[np.float64], unit: float) -> Offsets:
    return _offsets(u)


@dataclass(frozen=True)
class Motion:
    """``mover``: the sprite that moves, None = neither. ``changes``: which tone changes its whole
    appearance first, None = neither does."""

    draw: Draw
    mover: Tone | None = None
    changes: Tone | None = None


_DRAWS: dict[str, Draw] = {
    "moves_right": _sweep(1, 0),
    "moves_left": _sweep(-1, 0),
    "moves_up": _sweep(0, -1),
    "moves_down": _sweep(0, 1),
    "grows": _zoom(1),
    "shrinks": _zoom(-1),
    "orbits_cw": _orbit(1),
    "orbits_ccw": _orbit(-1),
    "spins_cw": _spin(1),
    "spins_ccw": _spin(-1),
    "shakes": _oscillate("x"),
    "nods": _oscillate("y"),
    "hops": _hop,
}
MOTIONS: dict[str, Motion] = {
    f"{tone}_{name}": Motion(draw, mover=tone) for name, draw in _DRAWS.items() for tone in TONES
} | {
    "light_then_dark": Motion(_still, changes="light"),
    "dark_then_light": Motion(_still, changes="dark"),
}
CLASSES = tuple(MOTIONS)


def change_times(
    rng: np.random.Generator, first: Tone | None, frames: int
) -> dict[Tone, float | None]:
    """Frame at which each sprite changes its looks: one early, one late, or never."""
    early, late = rng.uniform(8, 24) / 64 * frames, rng.uniform(40, 56) / 64 * frames
    if first is None:
        return dict.fromkeys(TONES)
    return {tone: early if tone == first else late for tone in TONES}
