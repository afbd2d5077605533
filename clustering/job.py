"""One clustering on one rank: which stage reads what, and what is told of it.

Files and stages: ``clustering.run``. Every method of ``Run`` is collective.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clustering.approximate import ApproximateSearch, tune
from clustering.arrays import silent
from clustering.assign import Labelling, label_all, store_labels
from clustering.centers import CenterJob, make_centers
from clustering.features import PassSettings, Skipped, extract, files_of_parts, finish
from clustering.keys import check_keys
from clustering.kmeans.array_file import ArrayFile
from clustering.neighbours import Layout, Neighbours, make_layout
from clustering.points import Points
from clustering.quality import quality
from clustering.stages import Stages, stamp_of
from clustering.survey import Survey, survey
from clustering.teachers import open_teacher
from ovtrain.config.cluster import ClusterConfig
from ovtrain.data.shards import ShardReader
from ovtrain.distributed.collectives import barrier, broadcast_object
from ovtrain.distributed.context import World
from ovtrain.schema.atomic import atomic_open, file_sha256, write_json
from ovtrain.schema.errors import ConfigError, LabelError
from ovtrain.schema.features import FeatureStore
from ovtrain.schema.labels import STORE, CentroidStore, read_description
from ovtrain.schema.lock import take
from ovtrain.schema.manifest import MANIFEST, ShardManifest

SETTINGS, CONVERGENCE = "settings.json", "convergence.jsonl"
QUALITY, SKIPPED, SURVEY = "quality.json", "skipped.jsonl", "survey.npz"
KMEANS, PARTIAL_LABELS = "kmeans", "labels.partial"
STAGE_NAMES = ("features", "centers", "labels")
OF_CENTERS = (
    *("clusters", "engine", "spherical", "start", "restarts", "iterations", "tolerance"),
    *("largest", "coarse", "bad", "seed"),
)
OF_LABELS = ("top", "engine", "spherical", "bad", "search", "recall")


@dataclass(frozen=True)
class Clustering:
    """One invocation: where it reads and writes, and with what settings. ``stage`` "": all."""

    shards: Path
    out: Path
    config: ClusterConfig
    centroids: Path | None = None
    features: Path | None = None
    stage: str = ""
    task: tuple[int, int] | None = None


class Run:
    """A rank's part of a clustering. Methods are collective."""

    def __init__(self, job: Clustering, world: World, say: Callable[[str], None]) -> None:
        self.job, self.world = job, world
        self.manifest = ShardManifest.read(job.shards)
        self.say = say if world.is_main else silent
        self.config, self.out = job.config, job.out
        self.stages = Stages(job.out, world, self.say)

    def all(self) -> None:
        """The stages asked for. Raises OvtrainError."""
        stages = {"features": self.features, "centers": self.centers, "labels": self.labels}
        wanted = [self.job.stage] if self.job.stage else list(stages)
        if self.job.centroids is None:  # before the long feature pass, not after it
            _check_clusters(self.config.clusters, self.manifest.samples)
        if self.world.is_main and not self.job.task:
            take(self.out, "--out")
        for name in wanted:
            if self._made_before(name) is None:
                stages[name]()
        if self.world.is_main and not self.job.task:
            self._write_settings()

    def _write_settings(self) -> None:
        """At the end: a call that was refused changes nothing."""
        given = {"features": self.job.features, "centroids": self.job.centroids}
        about = {name: str(path.resolve()) if path else None for name, path in given.items()}
        about["shards"] = str(self.job.shards.resolve())
        write_json(self.out / SETTINGS, {**about, "config": asdict(self.config)})

    def _made_before(self, name: str) -> Path | None:
        return {"features": self.job.features, "centers": self.job.centroids}.get(name)

    @cached_property
    def reader(self) -> ShardReader:
        """Opened by those who need it: its index takes some 40 bytes of memory per sample."""
        return ShardReader(self.job.shards)

    # -- features

    @cached_property
    def feature_stamp(self) -> str:
        teacher = open_teacher(self.config, self.manifest.kind)
        return stamp_of(manifest=file_sha256(self.job.shards / MANIFEST), teacher=teacher.name)

    def features(self) -> None:
        folder = self.out / "features"
        outputs = [folder / STORE, self.out / SKIPPED, *files_of_parts(folder)]
        self.stages.run("features", self.feature_stamp, outputs, self._extract)

    def _extract(self) -> str:
        """This rank's parts, or those of its task of an array; what is said where all are there."""
        config, folder = self.config, self.out / "features"
        teacher = open_teacher(config, self.manifest.kind)
        settings = PassSettings(config.workers, config.batch, config.part_samples)
        if self.world.is_main:
            check_keys(self.reader)
        (task, tasks), world = self.job.task or (0, 1), self.world
        task, tasks = task + tasks * world.rank, tasks * world.size  # ranks share a task's parts
        extract(self.reader, teacher, folder, settings, task=task, tasks=tasks, say=self.say)
        barrier(self.world.group)
        if not self.world.is_main:
            del self.reader
            return ""
        made = finish(self.reader, teacher, folder, settings)
        del self.reader  # and its memory
        if made is None:
            return ""
        _write_skipped(self.out / SKIPPED, made.skipped())
        return f"{len(made.store):,} samples, {made.skipped_count:,} skipped"

    # -- centers

    @cached_property
    def store(self) -> FeatureStore:
        if self.job.features:
            return _store_of(self.job.features, self.manifest)
        self.stages.needs("features", self.feature_stamp)
        return FeatureStore(self.out / "features")

    @cached_property
    def surveyed(self) -> Survey:
        path = self.out / SURVEY
        return survey(self.store, self.world, path, self.say)

    def bad_rows(self) -> Any:
        """Rows that cannot be used. Raises LabelError where the policy refuses them."""
        return self.surveyed.bad(
            spherical=self.config.spherical, policy=self.config.bad, name=self._name
        )

    @property
    def center_stamp(self) -> str:
        if self.job.centroids is not None:
            read_description(self.job.centroids, "centroids")
            return file_sha256(self.job.centroids / "centroids.npy")
        of_cells = ("memory_gib",) if self.config.coarse else ()
        chosen = _chosen(self.config, (*OF_CENTERS, *of_cells))
        return stamp_of(features=self.store.identity, **chosen)

    def centers(self) -> None:
        stamp = self.center_stamp

        def make() -> str:
            bad = self.bad_rows()
            folder = self.out / KMEANS
            points = Points(self.store, self.world.device, self.config.spherical, bad)
            job = CenterJob(
                points, self.surveyed.largest, self.config, self.world, folder, stamp, self.say
            )
            made = make_centers(job)
            if self.world.is_main:
                CentroidStore.adopt(made.centers, self.out / "centroids", self.store.teacher)
                with atomic_open(self.out / CONVERGENCE, "w") as handle:
                    handle.writelines(json.dumps(row, sort_keys=True) + "\n" for row in made.rows)
            mean = made.objective / points.usable
            return f"{self.config.clusters:,} centers, mean squared distance {mean:.6g}"

        self.stages.run("centers", stamp, [self.out / "centroids" / STORE], make)
        self.stages.drop(KMEANS)

    # -- labels

    def labels(self) -> None:
        if self.job.centroids is None:
            self.stages.needs("centers", self.center_stamp)
        chosen = _chosen(self.config, OF_LABELS)
        stamp = stamp_of(features=self.store.identity, centers=self.center_stamp, **chosen)
        outputs = [self.out / "labels" / STORE, self.out / QUALITY]
        self.stages.run("labels", stamp, outputs, lambda: self._label(stamp))
        self.stages.drop(PARTIAL_LABELS)

    def _label(self, stamp: str) -> str:
        folder = self.job.centroids or self.out / "centroids"
        clusters, width = self._check_centers(folder)
        centers = ArrayFile(folder / "centroids.npy", "float32", (clusters, width), write=False)
        points = Points(self.store, self.world.device, self.config.spherical, self.bad_rows())
        layout = make_layout(
            self.world, len(points), clusters, width, self.config.memory_gib,
            self.config.center_shards,
        )  # fmt: skip
        neighbours = Neighbours(points, layout, self.config.engine)
        searched = self._approximate(neighbours, centers, clusters)
        folder = self.out / PARTIAL_LABELS
        job = Labelling(neighbours, centers, self.config.top, folder, stamp, self.say)
        keys = label_all(job)
        if not self.world.is_main:
            return ""
        hashes = self.reader.hashes
        fingerprint = self.store.fingerprint
        store_labels(self.out / "labels", hashes, self.store.keys, keys, clusters, fingerprint)
        keys.close()
        about = quality(self.out / "labels") | {
            "without_labels": len(hashes) - points.usable,
            "unusable": self.surveyed.counts(spherical=self.config.spherical),
            "search": searched,
        }
        write_json(self.out / QUALITY, about)
        return f"of {points.usable:,} samples, {about['empty']:,} of {clusters:,} centers empty"

    def _approximate(
        self, neighbours: Neighbours, centers: ArrayFile, clusters: int
    ) -> dict[str, Any]:
        """What is told of the search; sets an approximate one where the config wants it."""
        config = self.config
        about: dict[str, Any] = {"search": config.search, "engine": config.engine}
        if config.search == "exact":
            return about
        if not _whole(neighbours.layout, clusters):
            raise ConfigError(
                f"search={config.search}",
                "an approximate index holds all centers on each rank",
                fix="set center_shards=1 and a larger memory_gib, or search=exact",
            )
        table = neighbours.load(centers, range(clusters))
        search = ApproximateSearch(config.search, table, config.seed)
        tuned = None
        if self.world.is_main:
            tuned = tune(
                search, neighbours.points, config.top, config.recall, config.seed, self.say
            )
        tuned = broadcast_object(tuned, self.world.group)
        search.set_width(tuned.width)
        neighbours.given = search
        return about | tuned.about()

    def _check_centers(self, folder: Path) -> tuple[int, int]:
        """(C, F) of centers that are this teacher's. Raises LabelError, ConfigError."""
        about = read_description(folder, "centroids")
        clusters, width = int(about["clusters"]), int(about["width"])
        if (about["teacher"], width) != (self.store.teacher, self.store.width):
            raise LabelError(
                str(folder),
                f"made by {about['teacher']} (width {width})",
                allowed=f"{self.store.teacher} (width {self.store.width})",
                fix="cluster again with this teacher",
            )
        if self.config.top > clusters:
            fix = f"set top={clusters} or lower"
            raise ConfigError(f"top={self.config.top}", f"{clusters} centers", fix=fix)
        return clusters, width

    def _name(self, row: int) -> str:
        """Of a row of the store, as ``shard.tar/key``."""
        at = (self.reader.hashes == self.store.keys[row]).nonzero()[0]
        return self.reader.name(int(at[0])) if len(at) else f"row {row}"


def _store_of(folder: Path, manifest: ShardManifest) -> FeatureStore:
    """Raises LabelError where it was made from other shards."""
    store = FeatureStore(folder)
    if store.fingerprint != manifest.fingerprint:
        raise LabelError(
            str(folder),
            f"features of shards {store.fingerprint[:12]}, the shards here are "
            f"{manifest.fingerprint[:12]}",
            fix="name features of these shards, or leave --features out",
        )
    return store


def _whole(layout: Layout, clusters: int) -> bool:
    return layout.ranges == (range(clusters),)


def _check_clusters(clusters: int, samples: int) -> None:
    if clusters > samples:
        raise ConfigError(
            f"clusters={clusters}",
            f"{samples} samples",
            allowed=f"1 to {samples}, one distinct sample per center at the least",
            fix=f"set clusters={samples} or lower" if samples else "add samples",
        )


def _chosen(config: ClusterConfig, names: Sequence[str]) -> dict[str, Any]:
    values = asdict(config)
    return {name: values[name] for name in names}


def _write_skipped(path: Path, skipped: Iterable[Skipped]) -> None:
    with atomic_open(path, "w") as handle:
        for entry in skipped:
            handle.write(json.dumps(asdict(entry)) + "\n")
