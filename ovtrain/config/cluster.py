"""Clustering section: teacher, features, centers, labels."""

from __future__ import annotations

from dataclasses import dataclass

from ovtrain.config.rules import NOT_NEGATIVE, POSITIVE, broken, not_among

TEACHERS = ("descriptor", "clip", "ovtrain")
ENGINES = ("gemm", "faiss")
STARTS = ("random", "kmeans++")
SEARCHES = ("exact", "ivf", "hnsw")
POLICIES = ("refuse", "skip")
PLUS_PLUS_MOST = 10_000


@dataclass(frozen=True)
class ClusterConfig:
    """Teacher: ``descriptor`` is demo-only and needs no weights; ``clip`` loads a CLIP-style image
    tower (MetaCLIP-H/14 in the paper), ``ovtrain`` an export, from the local folder
    ``teacher_dir``. ``frames`` of a clip are embedded; ``clip`` keeps the first ``frame_dims``
    numbers of each (0: all; the released code: 512); ``projection`` is the width of a stored random
    projection (0: none). The descriptor has its own frames and its own width.

    Feature pass: ``workers`` threads decode, ``batch`` samples a call, ``part_samples`` samples a
    part of the store.

    Centers: ``engine`` finds the nearest one (``gemm``: bfloat16 candidates, float32 decides);
    ``spherical`` keeps points and centers on the unit sphere; ``start`` draws the first centers;
    the best of ``restarts`` runs is kept; a run ends after ``iterations``, or when one lowers the
    objective by less than the share ``tolerance``; a cluster of more than ``largest`` times the
    mean size is split (0: none is); ``coarse`` cells make it hierarchical (0: flat). ``bad``
    features (not finite; of length zero where spherical) are refused, or skipped and counted.
    Centers lie on ``center_shards`` ranks each a part (0: as few as ``memory_gib`` per rank
    allows).

    Labels: the ``top`` nearest centers, searched exactly or in an approximate index that reaches
    ``recall`` on a held-out sample."""

    teacher: str = "descriptor"
    teacher_dir: str = ""
    frames: int = 8
    frame_dims: int = 0
    projection: int = 0
    workers: int = 2
    batch: int = 16
    part_samples: int = 65_536
    clusters: int = 400_000
    engine: str = "gemm"
    spherical: bool = False
    start: str = "random"
    restarts: int = 1
    iterations: int = 20
    tolerance: float = 0.0
    largest: float = 0.0
    coarse: int = 0
    bad: str = "refuse"
    center_shards: int = 0
    memory_gib: float = 16.0
    seed: int = 0
    top: int = 10
    search: str = "exact"
    recall: float = 0.99

    def problems(self) -> list[str]:
        choices = {"teacher": TEACHERS, "engine": ENGINES, "start": STARTS}
        found = not_among(self, "", choices | {"search": SEARCHES, "bad": POLICIES})
        if self.teacher != "descriptor" and not self.teacher_dir:
            found.append(f"teacher={self.teacher} needs teacher_dir, a local folder with weights")
        counts = ("clusters", "top", "frames", "iterations", "workers", "batch", "part_samples")
        none = ("seed", "frame_dims", "projection", "tolerance", "largest", "coarse")
        counts += ("restarts", "memory_gib", "recall")
        found += broken(self, "", {POSITIVE: counts, NOT_NEGATIVE: (*none, "center_shards")})
        return found + self._of_teacher() + self._of_centers()

    def _of_centers(self) -> list[str]:
        found = list[str]()
        for name in ("top", "coarse"):
            if getattr(self, name) > self.clusters:
                found.append(
                    f"{name}={getattr(self, name)} exceeds clusters={self.clusters}; lower {name}"
                )
        if self.start == "kmeans++" and self.clusters > PLUS_PLUS_MOST:
            found.append(
                f"start=kmeans++ reads its sample once for each of clusters={self.clusters}; use "
                f"start=random above {PLUS_PLUS_MOST}"
            )
        if self.coarse and self.restarts > 1:
            found.append(f"restarts={self.restarts} is for flat k-means; use 1 with coarse")
        if 0 < self.largest <= 1:
            found.append(f"largest={self.largest} must be above 1, times the mean size, or 0")
        if self.recall > 1:
            found.append(f"recall={self.recall} must be at most 1")
        return found

    def _of_teacher(self) -> list[str]:
        """What the teacher cannot follow."""
        found = list[str]()
        if self.frame_dims and self.teacher != "clip":
            found.append(
                f"frame_dims={self.frame_dims} cuts frames that are embedded one by one; "
                f"teacher={self.teacher} sees a clip at once; use 0"
            )
        if self.projection and self.teacher == "descriptor":
            found.append(
                f"projection={self.projection}: the descriptor's lengths mean something, and a "
                "projection gives up lengths; use 0"
            )
        return found
