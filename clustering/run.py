"""Shards -> features -> centers -> labels: ``python -m clustering.run SHARDS --out DIR``.

    python -m clustering.run SHARDS --out DIR [--config YAML] [--centroids DIR] [key=value ...]

writes ``DIR/features``, ``DIR/centroids``, ``DIR/labels`` (stores of ``ovtrain.schema.labels``),
``DIR/quality.json``, ``DIR/skipped.jsonl`` (one {"file", "reason"} per sample left out) and
``DIR/stages.json``. With ``--centroids`` no centers are made: samples get labels from those
(held-out data). A stage whose inputs and settings are unchanged is not run again.

Errors are one line on stderr, exit status 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from clustering.assign import label_store, nearest
from clustering.features import PassSettings, Skipped, extract
from clustering.kmeans import check_clusters, kmeans
from clustering.quality import quality
from clustering.teachers import open_teacher
from ovtrain.config.cluster import ClusterConfig
from ovtrain.config.load import checked, find_config, load
from ovtrain.data.shards import ShardReader
from ovtrain.schema.atomic import atomic_open, file_sha256, write_json
from ovtrain.schema.errors import exit_status
from ovtrain.schema.features import FeatureStore
from ovtrain.schema.labels import STORE, CentroidStore, read_description
from ovtrain.schema.manifest import MANIFEST

STAGES, QUALITY, SKIPPED = "stages.json", "quality.json", "skipped.jsonl"


@dataclass(frozen=True)
class Clustering:
    """One invocation: where it reads and writes, and with what settings."""

    shards: Path
    out: Path
    config: ClusterConfig
    centroids: Path | None = None


def _say(line: str) -> None:
    print(line, flush=True)


def run(job: Clustering, say: Callable[[str], None] = _say) -> None:
    """All stages of ``job``. Raises OvtrainError."""
    reader = ShardReader(job.shards)
    try:
        if job.centroids is None:  # before the long feature pass, not after it
            check_clusters(job.config.clusters, len(reader))
        features = _features(job, reader, say)
        centers = _centers(job, features, say)
        _labels(job, reader, features, centers, say)
    finally:
        reader.close()


def _features(job: Clustering, reader: ShardReader, say: Callable[[str], None]) -> str:
    teacher = open_teacher(job.config, reader.manifest.kind)
    stamp = _stamp(manifest=file_sha256(job.shards / MANIFEST), teacher=teacher.name)

    def make() -> str:
        config = job.config
        settings = PassSettings(config.workers, config.batch, config.part_samples)
        made = extract(reader, teacher, job.out / "features", settings, say=say)
        assert made is not None, "one task makes all parts"
        _write_skipped(job.out / SKIPPED, made.skipped())
        return f"{len(made.store)} samples, {made.skipped_count} skipped"

    _stage(job.out, "features", stamp, [job.out / "features" / STORE, job.out / SKIPPED], make, say)
    return stamp


def _centers(job: Clustering, features: str, say: Callable[[str], None]) -> str:
    if job.centroids is not None:
        read_description(job.centroids, "centroids")
        return file_sha256(job.centroids / "centroids.npy")
    config = asdict(job.config)
    keys = ("clusters", "iterations", "seed", "spherical")
    settings: dict[str, Any] = {key: config[key] for key in keys}
    stamp = _stamp(features=features, **settings)

    def make() -> str:
        made = kmeans(FeatureStore(job.out / "features"), **settings)
        made.write(job.out / "centroids")
        return f"{len(made.centroids)} centers"

    _stage(job.out, "centroids", stamp, [job.out / "centroids" / STORE], make, say)
    return stamp


def _labels(
    job: Clustering, reader: ShardReader, features: str, centers: str, say: Callable[[str], None]
) -> None:
    stamp = _stamp(features=features, centers=centers, top=job.config.top)

    def make() -> str:
        store = FeatureStore(job.out / "features")
        centroids = CentroidStore.read(job.centroids or job.out / "centroids")
        found = nearest(store, centroids, job.config.top)
        clusters = len(centroids.centroids)
        labels = label_store(reader.keys, store, found, clusters)
        labels.write(job.out / "labels")
        about = quality(found, clusters) | {"without_labels": len(reader) - len(store.keys)}
        write_json(job.out / QUALITY, about)
        return f"{len(labels.ids)} labels of {len(store.keys)} samples, {about['empty']} empty"

    outputs = [job.out / "labels" / STORE, job.out / QUALITY]
    _stage(job.out, "labels", stamp, outputs, make, say)


def _stage(
    out: Path,
    name: str,
    stamp: str,
    outputs: list[Path],
    make: Callable[[], str],
    say: Callable[[str], None],
) -> None:
    """Run ``make`` unless ``stages.json`` says that the outputs are of these inputs."""
    stamps = _read_stamps(out / STAGES)
    if stamps.get(name) == stamp and all(path.is_file() for path in outputs):
        say(f"{name}: unchanged, skipped")
        return
    if stamps.pop(name, None):  # a stage cut short must not pass for its former self
        write_json(out / STAGES, stamps)
    start = time.monotonic()
    said = make()
    write_json(out / STAGES, {**stamps, name: stamp})
    say(f"{name}: {said} ({time.monotonic() - start:.1f} s)")


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m clustering.run")
    parser.add_argument("shards", type=Path, help="folder with manifest.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", help="YAML path, or a name under the shipped configs")
    parser.add_argument("--centroids", type=Path, help="assign to these centers, make none")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(arguments)

    def work() -> None:
        path = find_config(given.config) if given.config else None
        config = load(ClusterConfig, path, given.overrides)
        checked(str(path or "cluster config"), config)
        run(Clustering(given.shards, given.out, config, given.centroids))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
