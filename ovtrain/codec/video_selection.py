"""The patches that a whole video keeps: signals -> energy -> selection.

    select_from_video("film.mp4", 2048) -> VideoSelection

``frames`` of the video, spread evenly, stand on the virtual grid in their order (all of them where
there are fewer); the picture is resized by its short side and cropped at its centre. Energies of
frames between add to the next one taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ovtrain.codec.bitstream import CodecSignals, Origin
from ovtrain.codec.decoded import Media
from ovtrain.codec.energy import EnergyMap, measure_video
from ovtrain.codec.ladder import open_signals
from ovtrain.codec.selection import Mode, select
from ovtrain.config.prepare import EnergyConfig
from ovtrain.schema.errors import ConfigError
from ovtrain.schema.grid import PatchGrid

IntArray = npt.NDArray[np.int64]
Watch = Callable[[Iterable[CodecSignals]], Iterable[CodecSignals]]


@dataclass(frozen=True)
class VideoSelection:
    """energy (T, h, w) uint16; positions (N, 3) int64 (t, h, w), rising; frame_ids (T,) numbers of
    the frames in the video, of ``read`` in all; filled: kept patches without energy; damaged:
    frames of the T whose bitstream is."""

    energy: EnergyMap
    positions: IntArray
    frame_ids: IntArray
    read: int
    filled: int
    damaged: int
    origin: Origin


def select_from_video(
    video: Media,
    budget: int,
    *,
    frames: int = 64,
    size: int = 224,
    patch: int = 14,
    mode: Mode = "global",
    energy: EnergyConfig | None = None,
    origin: Origin | None = None,
    start: int = 0,
    stop: int | None = None,
    clamp: bool = False,
    turns: int = 0,
    watch: Watch = iter,
) -> VideoSelection:
    """``start``, ``stop``: the part of the video that is read; ``clamp``: a budget above all
    patches means all; ``turns``: quarter turns counterclockwise that make the picture upright;
    ``watch`` sees frames pass. Raises MediaError, CodecError, ConfigError."""
    counts = {"budget": budget, "frames": frames, "size": size, "patch": patch}
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            allowed = "a whole number, 1 or more"
            raise ConfigError(f"{name}={value}", "no positive count", allowed=allowed)
    grid = PatchGrid.from_pixels(1, size, size, patch)
    with open_signals(video, origin=origin, start=start, stop=stop) as source:
        measured = measure_video(watch(source), grid, energy or EnergyConfig())
        taken = source.origin
    count = min(frames, len(measured))
    frame_ids = np.rint(np.linspace(0, len(measured) - 1, count)).astype(np.int64)
    clip = measured.clip(frame_ids.tolist())
    upright = np.ascontiguousarray(np.rot90(clip.map, turns, axes=(1, 2)))
    chosen = select(upright, min(budget, upright.size) if clamp else budget, mode)
    return VideoSelection(
        energy=upright,
        positions=PatchGrid(*upright.shape).positions(chosen.flat),
        frame_ids=start + frame_ids,
        read=len(measured),
        filled=chosen.filled,
        damaged=clip.damaged,
        origin=taken,
    )
