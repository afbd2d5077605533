"""Preparation section: raw media -> clips -> energy -> shards."""

from __future__ import annotations

from dataclasses import dataclass, field

from ovtrain.config.rules import CRF, NOT_NEGATIVE, PERCENTILE, POSITIVE, broken, not_among

CAMERA = ("none", "median")
NORMALISE = ("frame", "clip")
LIST_MODES = ("l0", "l1", "max", "sum")


@dataclass(frozen=True)
class EnergyConfig:
    """Paper section 2.1: H = (w_motion M + w_residual R) / (w_motion + w_residual).

    ``normalise``: percentile per frame (the paper's formula) or per clip. ``camera``: model of the
    camera motion that is removed first. ``lists``: how two reference lists become one vector.
    """

    motion_weight: float = 1.0
    residual_weight: float = 1.0
    percentile: float = 95.0
    normalise: str = "frame"
    camera: str = "median"
    lists: str = "max"
    per_reference_distance: bool = True

    def problems(self) -> list[str]:
        choices = {"normalise": NORMALISE, "camera": CAMERA, "lists": LIST_MODES}
        rules = {
            NOT_NEGATIVE: ("motion_weight", "residual_weight"),
            PERCENTILE: ("percentile",),
        }
        found = not_among(self, "energy.", choices) + broken(self, "energy.", rules)
        if self.motion_weight + self.residual_weight == 0:
            found.append("energy weights are both 0; at least one must count")
        return found


@dataclass(frozen=True)
class PrepareConfig:
    """Clips of ``frames`` consecutive frames at ``size`` x ``size`` (short side resized, centre
    cropped), transcoded with the paper's settings (GOP 32, no B-frames, one reference)."""

    size: int = 224
    frames: int = 64
    patch: int = 14
    gop: int = 32
    crf: int = 23
    preset: str = "fast"
    clips_per_video: int = 1
    images_per_clip: int = 2
    samples_per_shard: int = 256
    workers: int = 2
    seed: int = 0
    energy: EnergyConfig = field(default_factory=EnergyConfig)

    def problems(self) -> list[str]:
        counts = ("size", "frames", "patch", "gop", "clips_per_video", "samples_per_shard")
        rules = {
            POSITIVE: (*counts, "workers"),
            NOT_NEGATIVE: ("images_per_clip", "seed"),
            CRF: ("crf",),
        }
        found = self.energy.problems() + broken(self, "", rules)
        if not found and self.size % self.patch:
            below = max(self.size // self.patch, 1) * self.patch
            found.append(
                f"size={self.size} must be a multiple of patch={self.patch}; "
                f"use {below} or {below + self.patch}"
            )
        return found
