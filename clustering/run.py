"""Shards -> features -> centers -> labels: ``python -m clustering.run SHARDS --out DIR``.

    [torchrun --nproc-per-node N -m] clustering.run SHARDS --out DIR [--config YAML]
        [--centroids DIR] [--stage features|centers|labels] [--task I/N] [key=value ...]

writes ``DIR/features``, ``DIR/centroids``, ``DIR/labels`` (stores of ``ovtrain.schema``),
``DIR/convergence.jsonl`` (a row of each iteration), ``DIR/quality.json``, ``DIR/skipped.jsonl``
(one {"file", "reason"} per sample left out), ``DIR/settings.json`` and ``DIR/stages.json``. With
``--centroids`` no centers are made: samples get labels from those (held-out data). ``--stage`` does
one stage alone; ``--task`` the I-th of N shares of the feature pass, as in a SLURM array.

A stage whose inputs and settings are unchanged is not run again; one that was interrupted goes on.
Errors are one line on stderr, exit status 2.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from clustering.approximate import ApproximateSearch, tune
from clustering.arrays import silent
from clustering.assign import Labelling, label_all, store_labels
from clustering.centers import CenterJob, make_centers
from clustering.features import PassSettings, Skipped, extract, files_of_parts, finish
from clustering.kmeans.array_file import ArrayFile
from clustering.neighbours import Layout, Neighbours, make_layout
from clustering.points import Points
from clustering.quality import quality
from clustering.survey import Survey, survey
from clustering.teachers import open_teacher
from ovtrain.config.cluster import ClusterConfig
from ovtrain.config.load import checked, find_config, load
from ovtrain.data.shards import ShardReader
from ovtrain.distributed.collectives import barrier, broadcast_object
from ovtrain.distributed.context import World, die_with_launcher, start_world, stop_world
from ovtrain.schema.atomic import atomic_open, file_sha256, write_json
from ovtrain.schema.errors import ConfigError, LabelError, exit_status
from ovtrain.schema.features import FeatureStore
from ovtrain.schema.labels import STORE, CentroidStore, read_description
from ovtrain.schema.lock import take
from ovtrain.schema.manifest import MANIFEST

SETTINGS, STAGES, CONVERGENCE = "settings.json", "stages.json", "convergence.jsonl"
QUALITY, SKIPPED, SURVEY = "quality.json", "skipped.jsonl", "survey.npz"
KMEANS, PARTIAL_LABELS = "kmeans", "labels.partial"
LONGEST_S = 7 * 86_400
"""Ranks wait so long for each other: the first alone joins labels, parts of a pass end apart."""
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
    stage: str = ""
    task: tuple[int, int] | None = None


class Run:
    """A rank's part of a clustering. Methods are collective."""

    def __init__(
        self, job: Clustering, world: World, reader: ShardReader, say: Callable[[str], None]
    ) -> None:
        self.job, self.world, self.reader = job, world, reader
        self.say = say if world.is_main else silent
        self.config, self.out = job.config, job.out

    def all(self) -> None:
        """The stages asked for. Raises OvtrainError."""
        stages = {"features": self.features, "centers": self.centers, "labels": self.labels}
        wanted = [self.job.stage] if self.job.stage else list(stages)
        if self.job.centroids is None:  # before the long feature pass, not after it
            _check_clusters(self.config.clusters, len(self.reader))
        if self.world.is_main and not self.job.task:
            take(self.out, "--out")
            given = self.job.centroids
            about = {
                "shards": str(self.job.shards.resolve()),
                "config": asdict(self.config),
                "centroids": str(given.resolve()) if given else None,
            }
            write_json(self.out / SETTINGS, about)
        for name in wanted:
            if name != "centers" or self.job.centroids is None:
                stages[name]()

    # -- features

    @cached_property
    def feature_stamp(self) -> str:
        teacher = open_teacher(self.config, self.reader.manifest.kind)
        return _stamp(manifest=file_sha256(self.job.shards / MANIFEST), teacher=teacher.name)

    def features(self) -> None:
        folder = self.out / "features"
        outputs = [folder / STORE, self.out / SKIPPED, *files_of_parts(folder)]
        self._stage("features", self.feature_stamp, outputs, self._extract)

    def _extract(self) -> str:
        """This rank's parts, or those of its task of an array; what is said where all are there."""
        config, folder = self.config, self.out / "features"
        teacher = open_teacher(config, self.reader.manifest.kind)
        settings = PassSettings(config.workers, config.batch, config.part_samples)
        (task, tasks), world = self.job.task or (0, 1), self.world
        task, tasks = task + tasks * world.rank, tasks * world.size  # ranks share a task's parts
        extract(self.reader, teacher, folder, settings, task=task, tasks=tasks, say=self.say)
        barrier(self.world.group)
        if not self.world.is_main:
            return ""
        made = finish(self.reader, teacher, folder, settings)
        if made is None:
            return ""
        _write_skipped(self.out / SKIPPED, made.skipped())
        return f"{len(made.store):,} samples, {made.skipped_count:,} skipped"

    # -- centers

    @cached_property
    def store(self) -> FeatureStore:
        self._needs("features", self.feature_stamp)
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
        return _stamp(features=self.store.identity, **chosen)

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

        self._stage("centers", stamp, [self.out / "centroids" / STORE], make)
        self._drop(KMEANS)

    # -- labels

    def labels(self) -> None:
        if self.job.centroids is None:
            self._needs("centers", self.center_stamp)
        chosen = _chosen(self.config, OF_LABELS)
        stamp = _stamp(features=self.store.identity, centers=self.center_stamp, **chosen)
        outputs = [self.out / "labels" / STORE, self.out / QUALITY]
        self._stage("labels", stamp, outputs, lambda: self._label(stamp))
        self._drop(PARTIAL_LABELS)

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

    # -- stages

    def _stage(self, name: str, stamp: str, outputs: list[Path], make: Callable[[], str]) -> None:
        """Run ``make`` unless ``stages.json`` says that the outputs are of these inputs. What it
        returns on the first rank is told: nothing, where others have still to do their share."""
        path = self.out / STAGES
        stamps = _read_stamps(path)
        same = stamps.get(name) == stamp and self.world.is_main  # which alone looks at the files
        same = same and all(output.is_file() for output in outputs)
        if broadcast_object(same, self.world.group):
            self.say(f"{name}: unchanged, skipped")
            return
        if self.world.is_main and stamps.pop(name, None):
            write_json(path, stamps)  # a stage cut short must not pass for its former self
        start = time.monotonic()
        said = broadcast_object(make(), self.world.group)
        if not said:
            self.say(f"{name}: other tasks are not done yet")
            return
        if self.world.is_main:
            write_json(path, {**stamps, name: stamp})
        barrier(self.world.group)
        self.say(f"{name}: {said} ({time.monotonic() - start:.1f} s)")

    def _drop(self, name: str) -> None:
        """Of a stage that is done, what it would have gone on with: not before ``stages.json`` says
        so, since what is half removed can neither be gone on with nor replaced."""
        if self.world.is_main:
            shutil.rmtree(self.out / name, ignore_errors=True)

    def _needs(self, name: str, stamp: str) -> None:
        """Raise LabelError where the stage ``name`` has not been done for these inputs."""
        there = _read_stamps(self.out / STAGES).get(name) == stamp
        if not broadcast_object(there, self.world.group):
            raise LabelError(
                str(self.out),
                f"no {name} of these shards and settings",
                fix=f"run the same command with --stage {name} first, or without --stage",
            )

    def _name(self, row: int) -> str:
        """Of a row of the store, as ``shard.tar/key``."""
        at = (self.reader.hashes == self.store.keys[row]).nonzero()[0]
        return self.reader.name(int(at[0])) if len(at) else f"row {row}"


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


def _read_stamps(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _stamp(**inputs: Any) -> str:
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _write_skipped(path: Path, skipped: Iterable[Skipped]) -> None:
    with atomic_open(path, "w") as handle:
        for entry in skipped:
            handle.write(json.dumps(asdict(entry)) + "\n")


def _say(line: str) -> None:
    print(line, flush=True)


def _task(text: str) -> tuple[int, int]:
    """``I/N``, I from 0 to N - 1."""
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise ConfigError(f"--task {text}", "not a share", allowed="I/N with I from 0 to N - 1")
    return int(first), int(count)


def run(job: Clustering, say: Callable[[str], None] = _say) -> None:
    """All stages of ``job``, in the world that the environment describes. Raises OvtrainError."""
    die_with_launcher()
    world = start_world(timeout_s=LONGEST_S)
    reader = ShardReader(job.shards)
    try:
        Run(job, world, reader, say).all()
    finally:
        reader.close()
    stop_world()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m clustering.run")
    parser.add_argument("shards", type=Path, help="folder with manifest.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", help="YAML path, or a name under the shipped configs")
    parser.add_argument("--centroids", type=Path, help="assign to these centers, make none")
    parser.add_argument("--stage", choices=STAGE_NAMES, default="", help="only this stage")
    parser.add_argument("--task", metavar="I/N", help="a share of --stage features")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(arguments)

    def work() -> None:
        path = find_config(given.config) if given.config else None
        config = load(ClusterConfig, path, given.overrides)
        checked(str(path or "cluster config"), config)
        task = _task(given.task) if given.task else None
        if task and given.stage != "features":
            raise ConfigError(
                f"--task {given.task}", "a share of one stage", fix="--stage features"
            )
        if given.centroids and given.stage == "centers":
            raise ConfigError(
                "--stage centers", "--centroids makes none", fix="leave one of them out"
            )
        run(Clustering(given.shards, given.out, config, given.centroids, given.stage, task))

    return exit_status(work)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("highest")
    status = main()
    # After an error the other ranks may wait in a collective: leave without the group's goodbye,
    # and torchrun ends them.
    os._exit(status) if status == 2 else sys.exit(status)
