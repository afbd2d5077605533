"""Clip bytes -> codec signals -> energy per patch, stored beside the clip.

Result: uint16 (T, size / p, size / p), 65,535 = 1.0 (``ovtrain.codec.energy``), and the origin of
the signals. Exact signals of a clip that was transcoded are those of the transcode, and say so.
Raises CodecError, and MediaError where the clip's own bitstream is damaged.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipelines.transcode import Clip
from ovtrain.codec import open_signals
from ovtrain.codec.bitstream import Origin
from ovtrain.codec.energy import measure_clip
from ovtrain.config.prepare import EnergyConfig
from ovtrain.schema.errors import MediaError
from ovtrain.schema.grid import PatchGrid


@dataclass(frozen=True)
class ScoredClip:
    """energy (T, H/p, W/p) uint16 and the rung of the ladder that made it."""

    energy: npt.NDArray[np.uint16]
    origin: Origin

    def payload(self) -> bytes:
        """The ``.energy.npy`` member of a sample."""
        buffer = io.BytesIO()
        np.save(buffer, self.energy, allow_pickle=False)
        return buffer.getvalue()


def score_clip(clip: Clip, grid: PatchGrid, config: EnergyConfig) -> ScoredClip:
    """Energy of every patch of a clip."""
    with open_signals(clip.payload) as source:
        measured = measure_clip(source, grid, config)
        origin = source.origin
    if measured.damaged:
        raise MediaError("clip", f"damaged bitstream ({measured.damaged} of {grid.frames} frames)")
    exact = origin == "hevc-bitstream" and clip.transcoded
    return ScoredClip(measured.map, "hevc-transcode" if exact else origin)
