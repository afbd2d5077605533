"""One generated clip: a class-independent scene, a motion, and their rendering.

Exactly two sprites, one light and one dark, over a textured background that pans in three clips
of ten. Scene and motion have seeds of their own, so the same scene can be set in motion by any
class and its middle frame stays the same.

``render`` gives (T, H * 3 / 2, W) uint8 I420 frames; H = W = ``size``, even.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipelines.motions import MOTIONS, Motion, Offsets
from data_pipelines.sprites import EXTENT, TEXELS, TONES, Texture, background, sprite_look

REFERENCE_SIZE = 112
RADIUS = (14.0, 18.0)
APART = 0.85
"""Distance of the sprites on each axis at the middle frame, in sums of radii."""
JITTER = 4.0
"""Pixels by which the pair's centre leaves the picture's: the rest is room for every motion."""
INSIDE = 0.6
"""Share of its radius by which a sprite's centre stays off the edges."""
PAN_SHARE = 0.3
TRIES = 60
SCENE, MOTION = range(2)

Planes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """State at the middle frame. poses (2, 4) and radii (2,) in the order of TONES; ``order``
    paints from back to front; pan (2,) pixels over the clip."""

    size: int
    family: int
    unit: float
    poses: npt.NDArray[np.float64]
    radii: npt.NDArray[np.float64]
    look_seeds: npt.NDArray[np.int64]
    order: tuple[int, int]
    backdrop: Texture
    pan: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Track:
    """One sprite over time: poses (T, 4), look (T,) 0 or 1."""

    poses: Offsets
    look: npt.NDArray[np.int64]


def draw_scene(seed: tuple[int, ...], size: int, family: int) -> Scene:
    """Everything a class has no say in."""
    rng = np.random.default_rng([*seed, SCENE])
    unit = size / REFERENCE_SIZE
    radii = rng.uniform(*RADIUS, size=2) * unit
    places = _places(rng, radii, size)
    angles = rng.uniform(0, 2 * np.pi, size=(2, 1))
    pans = rng.random() < PAN_SHARE
    heading, distance = rng.uniform(0, 2 * np.pi), rng.uniform(6, 16) * unit * pans
    side = size + int(np.ceil(24 * unit))
    return Scene(
        size=size,
        family=family,
        unit=unit,
        poses=np.concatenate([places, angles, np.zeros((2, 1))], axis=1),
        radii=radii,
        look_seeds=rng.integers(0, 2**31, size=(2, 2)),
        order=(0, 1) if rng.random() < 0.5 else (1, 0),
        pan=distance * np.array([np.cos(heading), np.sin(heading)]),
        backdrop=background(rng, side, family),
    )


def _places(
    rng: np.random.Generator, radii: npt.NDArray[np.float64], size: int
) -> npt.NDArray[np.float64]:
    """(2, 2) centres near the middle, on a diagonal: each sprite can sweep along either axis
    without meeting the other, and has room to both sides."""
    columns = []
    for _ in range(2):
        middle = size / 2 + rng.uniform(-JITTER, JITTER) * size / REFERENCE_SIZE
        half = APART * radii.sum() / 2 * (1 if rng.random() < 0.5 else -1)
        columns.append([middle - half, middle + half])
    return np.stack(columns, axis=1)


def animate(scene: Scene, name: str, seed: tuple[int, ...], frames: int) -> list[Track]:
    """Set ``scene`` in motion by class ``name``; one track per sprite, in the order of TONES."""
    rng = np.random.default_rng([*seed, MOTION])
    motion = MOTIONS[name]
    u = np.arange(frames) / max(frames - 1, 1)
    acting = motion.active(rng, u)
    tracks = []
    for index, tone in enumerate(TONES):
        offsets = _fitting(scene, motion, index, rng, u, acting[tone])
        look = motion.looks(rng, acting[tone])
        tracks.append(Track(scene.poses[index] + offsets, look))
    return tracks


def _fitting(
    scene: Scene,
    motion: Motion,
    index: int,
    rng: np.random.Generator,
    u: npt.NDArray[np.float64],
    active: npt.NDArray[np.bool_],
) -> Offsets:
    """Motion offsets that keep the sprite in the picture; else the best try."""
    best, least = np.zeros((len(u), 4)), np.inf
    for _ in range(TRIES):
        offsets = motion.draw(rng, u, scene.unit) * active[:, None]
        offsets = offsets - offsets[len(u) // 2]
        fault = _violation(scene, index, offsets)
        if fault < least:
            best, least = offsets, fault
        if fault == 0:
            break
    return best


def _violation(scene: Scene, index: int, offsets: Offsets) -> float:
    """Pixels by which a path leaves the picture, at its worst."""
    poses = scene.poses[index] + offsets
    radius = scene.radii[index] * np.exp(offsets[:, 3])
    inside = np.minimum(poses[:, :2], scene.size - poses[:, :2]).min(axis=1)
    return float(max(0.0, (radius * INSIDE - inside).max()))


def render(scene: Scene, tracks: list[Track]) -> Planes:
    """Paint background and sprites."""
    frames = len(tracks[0].look)
    canvas = _backdrops(scene, frames)
    for index in scene.order:
        _paint(canvas, scene, index, tracks[index])
    return _to_i420(canvas)


def _backdrops(scene: Scene, frames: int) -> Planes:
    """(T, H, W, 3): the background, shifted with sub-pixel steps where it pans."""
    canvas = np.empty((frames, scene.size, scene.size, 3), dtype=np.uint8)
    centre = (scene.backdrop.shape[0] - scene.size - 1) / 2
    if not scene.pan.any():
        first = int(centre)
        canvas[:] = scene.backdrop[first : first + scene.size, first : first + scene.size]
        return canvas
    steps = np.arange(frames) / max(frames - 1, 1) - 0.5
    for t, step in enumerate(steps):
        canvas[t] = _crop(scene.backdrop, centre + scene.pan * step, scene.size)
    return canvas


def _crop(texture: Texture, corner: npt.NDArray[np.float64], size: int) -> Planes:
    """Bilinear crop at a fractional corner (x, y), in 8-bit fixed point."""
    x, y = np.floor(corner).astype(int)
    fx, fy = ((corner - np.floor(corner)) * 16).astype(np.uint16)
    window = texture[y : y + size + 1, x : x + size + 1].astype(np.uint16)
    rows = window[:-1] * (16 - fy) + window[1:] * fy
    return ((rows[:, :-1] * (16 - fx) + rows[:, 1:] * fx + 128) >> 8).astype(np.uint8)


def _paint(canvas: Planes, scene: Scene, index: int, track: Track) -> None:
    """Blend one sprite into every frame; equal states are sampled once."""
    radius, tone = scene.radii[index], TONES[index]
    seeds = scene.look_seeds[index]
    looks = {
        int(k): sprite_look(np.random.default_rng(int(seeds[k])), tone, scene.family, radius)
        for k in np.unique(track.look)
    }
    states = np.concatenate([track.poses, track.look[:, None]], axis=1)
    unique, which = np.unique(states, axis=0, return_inverse=True)
    patches = [_sample(looks[int(state[4])], state, radius) for state in unique]
    for t, chosen in enumerate(which.ravel()):
        patch, x, y = patches[chosen]
        _blend(canvas[t], patch, x, y)


def _sample(
    look: Texture, state: npt.NDArray[np.float64], radius: float
) -> tuple[Planes, int, int]:
    """The sprite's (K, K, 4) pixels at a pose, and the picture coordinates of their corner."""
    x, y, angle, log_scale = state[:4]
    reach = radius * float(np.exp(log_scale))
    side = 2 * int(np.ceil(reach)) + 3
    left, top = int(np.floor(x)) - side // 2, int(np.floor(y)) - side // 2
    dx = np.arange(side) + 0.5 + left - x
    dy = (np.arange(side) + 0.5 + top - y)[:, None]
    cos, sin = np.cos(angle) / reach, np.sin(angle) / reach
    to_texel = TEXELS / (2 * EXTENT)
    column = ((dx * cos + dy * sin + EXTENT) * to_texel).astype(np.int32)
    row = ((dy * cos - dx * sin + EXTENT) * to_texel).astype(np.int32)
    # Outside the texture lies its border, which is transparent.
    np.clip(column, 0, TEXELS - 1, out=column)
    np.clip(row, 0, TEXELS - 1, out=row)
    texels = look.view(np.uint32).reshape(-1).take(row * TEXELS + column)
    return texels.view(np.uint8).reshape(side, side, 4), left, top


def _blend(picture: Planes, patch: Planes, x: int, y: int) -> None:
    height, width = picture.shape[:2]
    x0, x1 = max(x, 0), min(x + patch.shape[1], width)
    y0, y1 = max(y, 0), min(y + patch.shape[0], height)
    source = patch[y0 - y : y1 - y, x0 - x : x1 - x].astype(np.uint16)
    under = picture[y0:y1, x0:x1]
    alpha = source[..., 3:]
    mixed = (under * (255 - alpha) + source[..., :3] * alpha + 127) // 255
    picture[y0:y1, x0:x1] = mixed.astype(np.uint8)


def _to_i420(canvas: Planes) -> Planes:
    frames, size = canvas.shape[:2]
    out = np.empty((frames, size * 3 // 2, size), dtype=np.uint8)
    out[:, :size] = canvas[..., 0]
    quarter = size // 4
    for plane in (1, 2):
        full = canvas[..., plane].astype(np.uint16)
        rows = full[:, ::2] + full[:, 1::2]
        mean = (rows[:, :, ::2] + rows[:, :, 1::2] + 2) >> 2
        first = size + (plane - 1) * quarter
        out[:, first : first + quarter] = mean.reshape(frames, quarter, size)
    return out
