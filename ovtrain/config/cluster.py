"""Clustering section: teacher, centers, labels."""

from __future__ import annotations

from dataclasses import dataclass

from ovtrain.config.rules import NOT_NEGATIVE, POSITIVE, broken, not_among

TEACHERS = ("descriptor", "clip")


@dataclass(frozen=True)
class ClusterConfig:
    """``teacher: descriptor`` is demo-only and needs no weights; ``clip`` loads a CLIP-style image
    tower (MetaCLIP-H/14 in the paper) from the local folder ``teacher_dir``. ``spherical`` keeps
    the centers on the unit sphere; ``workers`` are the threads that decode."""

    teacher: str = "descriptor"
    teacher_dir: str = ""
    clusters: int = 400_000
    top: int = 10
    frames: int = 8
    iterations: int = 20
    spherical: bool = False
    seed: int = 0
    workers: int = 2

    def problems(self) -> list[str]:
        found = not_among(self, "", {"teacher": TEACHERS})
        if self.teacher == "clip" and not self.teacher_dir:
            found.append("teacher=clip needs teacher_dir, a local folder with the weights")
        counts = ("clusters", "top", "frames", "iterations", "workers")
        found += broken(self, "", {POSITIVE: counts, NOT_NEGATIVE: ("seed",)})
        if self.top > self.clusters:
            found.append(f"top={self.top} exceeds clusters={self.clusters}; lower top")
        return found
