"""Demo section: every stage from generated (or given) clips to a probed encoder.

``stage1``, ``stage2``: names of training configs; their sources are called ``video`` and ``image``
and get their folders from the demo. ``stage1_set``, ``stage2_set``, ``probe_set``: overrides
(``key=value``) of those configs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ovtrain.config.cluster import ClusterConfig
from ovtrain.config.prepare import PrepareConfig
from ovtrain.config.rules import NOT_NEGATIVE, POSITIVE, broken


@dataclass(frozen=True)
class DemoConfig:
    """``seeds``: number of training runs, seeded from ``seed`` on; ``control``: one more on
    shuffled labels."""

    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    video_clusters: ClusterConfig = field(default_factory=ClusterConfig)
    image_clusters: ClusterConfig = field(default_factory=ClusterConfig)
    stage1: str = "demo/stage1"
    stage2: str = "demo/stage2"
    stage1_set: list[str] = field(default_factory=list[str])
    stage2_set: list[str] = field(default_factory=list[str])
    probe_set: list[str] = field(default_factory=list[str])
    train_clips: int = 768
    heldout_clips: int = 320
    seed: int = 0
    seeds: int = 3
    nproc: int = 2
    control: bool = True
    probe: bool = True

    def problems(self) -> list[str]:
        found = [f"prepare.{problem}" for problem in self.prepare.problems()]
        found += [f"video_clusters.{problem}" for problem in self.video_clusters.problems()]
        found += [f"image_clusters.{problem}" for problem in self.image_clusters.problems()]
        counts = ("train_clips", "heldout_clips", "seeds", "nproc")
        found += broken(self, "", {POSITIVE: counts, NOT_NEGATIVE: ("seed",)})
        for key in ("prepare", "video_clusters", "image_clusters"):
            if getattr(self, key).seed:
                found.append(f"{key}.seed={getattr(self, key).seed}; set seed, which reaches all")
        if self.prepare.images_per_clip <= 0:
            found.append(
                f"prepare.images_per_clip={self.prepare.images_per_clip}; allowed: 1 or more "
                "(stage 1 trains on images)"
            )
        return found
