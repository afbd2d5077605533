"""The 26 motion classes of the generated clips, as offsets of a sprite's pose over time.

A pose is (x, y, angle, log scale): pixels with y downwards, radians clockwise. Every motion is
drawn freely and then shifted so that its offset at the middle frame is zero: the state at the
middle is drawn before and without the class, so the middle frame cannot tell it.

Which of the two sprites moves, which acts first and the sense of a spin need pixels; the path of
the mover is in the positions of the patches that carry energy.

offsets: (T, 4) float64. ``unit`` scales pixels: 1 at 112 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations

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
    """Monotonic travel of 42 to 56 pixels, faster at one end: the middle is not half way."""

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
    """Three to five swings of 12 to 16 pixels amplitude."""

    def draw(rng: np.random.Generator, u: npt.NDArray[np.float64], unit: float) -> Offsets:
        phase = rng.uniform(0, FULL_TURN) + rng.uniform(3, 5) * FULL_TURN * u
        return _offsets(u, **{axis: rng.uniform(12, 16) * unit * np.sin(phase)})

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


SPANS = {"early": (0.03, 0.30), "midway": (0.36, 0.64), "late": (0.70, 0.97)}
"""Shares of the clip in which a sprite acts, where the two act in turn."""
HALVES = {"first_half": (0.04, 0.44), "second_half": (0.56, 0.96)}
"""The same for two longer acts."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Motion:
    """``mover``: the only sprite that acts, None = either one, drawn; or ``spans``: when each of
    the two acts. ``flips``: acting is to change the whole appearance to and fro."""

    draw: Draw
    mover: Tone | None = None
    spans: Mapping[Tone, str] | None = None
    flips: bool = False

    def active(self, rng: np.random.Generator, u: npt.NDArray[np.float64]) -> dict[Tone, Mask]:
        """(T,) per sprite: the frames in which it acts."""
        if self.spans is None:
            mover = self.mover or TONES[rng.integers(len(TONES))]
            return {tone: np.full(len(u), tone == mover, dtype=np.bool_) for tone in TONES}
        return {tone: self._within(self.spans[tone], u) for tone in TONES}

    @staticmethod
    def _within(span: str, u: npt.NDArray[np.float64]) -> Mask:
        start, stop = (SPANS | HALVES)[span]
        return (u >= start) & (u <= stop)

    def looks(self, rng: np.random.Generator, active: Mask) -> npt.NDArray[np.int64]:
        """(T,) appearance, 0 as at the middle or 1: while it acts, the other every four to seven
        frames."""
        period = rng.integers(4, 8)
        look = (np.arange(len(active)) // period % 2) * (active & self.flips)
        return look ^ look[len(look) // 2]


def _in_turn(action: str, draw: Draw) -> Iterator[tuple[str, Motion]]:
    """The six ways in which the two sprites can act in two of the three spans."""
    for light, dark in permutations(SPANS, 2):
        yield f"{action}_light_{light}_dark_{dark}", _spanned(draw, light, dark)


def _spanned(draw: Draw, light: str, dark: str, *, flips: bool = False) -> Motion:
    return Motion(draw, spans={"light": light, "dark": dark}, flips=flips)


MOTIONS: dict[str, Motion] = {
    "moves_right": Motion(_sweep(1, 0)),
    "moves_left": Motion(_sweep(-1, 0)),
    "moves_up": Motion(_sweep(0, -1)),
    "moves_down": Motion(_sweep(0, 1)),
    "grows": Motion(_zoom(1)),
    "shrinks": Motion(_zoom(-1)),
    "orbits_cw": Motion(_orbit(1)),
    "orbits_ccw": Motion(_orbit(-1)),
    "spins_cw": Motion(_spin(1)),
    "spins_ccw": Motion(_spin(-1)),
    "light_hops": Motion(_hop, "light"),
    "dark_hops": Motion(_hop, "dark"),
    "flips_light_then_dark": _spanned(_still, "first_half", "second_half", flips=True),
    "flips_dark_then_light": _spanned(_still, "second_half", "first_half", flips=True),
    **dict(_in_turn("shake", _oscillate("x"))),
    **dict(_in_turn("nod", _oscillate("y"))),
}
CLASSES = tuple(MOTIONS)
