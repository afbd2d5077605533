"""Fits the demo's recipes to the data at hand: own folders, fewer clusters, a smaller batch.

A folder of a few videos shall train; what was lowered is said in a note.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launch.plan.step import classes_of
from ovtrain.config.cluster import ClusterConfig
from ovtrain.config.data import mixture_counts
from ovtrain.config.train import TrainConfig
from ovtrain.schema.errors import ConfigError
from ovtrain.schema.manifest import ShardManifest

SAMPLES_PER_CLUSTER = 6
"""When clusters must be lowered. Above the 4 that clustering insists on, since a sample without
features leaves it fewer than the manifest counts."""
LEAST_PER_CLUSTER = 4
KINDS = ("video", "image")


def fit_clusters(config: ClusterConfig, samples: int, kind: str) -> tuple[ClusterConfig, str]:
    """``config`` with clusters and labels that ``samples`` can carry; a note on what changed."""
    if samples >= SAMPLES_PER_CLUSTER * config.clusters:
        return config, ""
    if samples >= LEAST_PER_CLUSTER * SAMPLES_PER_CLUSTER:
        clusters = min(config.clusters, samples // SAMPLES_PER_CLUSTER)
    else:
        clusters = max(samples // LEAST_PER_CLUSTER, 1)
    top = max(1, min(config.top, clusters // 2))
    note = (
        f"{samples} {kind} samples carry {clusters} clusters with {top} labels each "
        f"({config.clusters} and {config.top} were asked)."
    )
    return replace(config, clusters=clusters, top=top), note


def own_sources(config: TrainConfig, out: Path, labels: str) -> TrainConfig:
    """Point the sources ``video`` and ``image`` at the demo's folders. Raises ConfigError."""
    sources = list(config.data.sources)
    for i, source in enumerate(sources):
        if source.name not in KINDS:
            raise ConfigError(
                f"data.sources: {source.name}", "unknown to the demo", allowed=", ".join(KINDS)
            )
        sources[i] = replace(
            source,
            shards=str(out / "data" / "train" / source.name),
            labels=str(out / "labels" / f"{labels}-{source.name}" / "labels"),
        )
    data = replace(config.data, sources=sources, cache_dir=str(out / "cache"))
    return replace(config, data=data)


def fit_ranks(config: TrainConfig, nproc: int) -> tuple[int, str]:
    """Processes that the classes of every source suffice for: each holds some."""
    found = {s.name: classes_of(s) for s in config.data.sources if s.labels}
    classes = {name: count for name, count in found.items() if count is not None}
    fewest = min(classes, key=lambda name: classes[name], default="")
    ranks = min(nproc, classes.get(fewest, nproc))
    if ranks == nproc:
        return nproc, ""
    return ranks, f"{ranks} processes instead of {nproc}: source {fewest} has {ranks} classes."


def fit_training(config: TrainConfig, nproc: int) -> tuple[TrainConfig, str]:
    """Lower the global batch until no source repeats a sample within it, as far as the ranks allow:
    each rank needs a sample of each source."""
    samples = [ShardManifest.read(source.shards).samples for source in config.data.sources]
    asked = config.run.global_batch
    least = least_batch(config, nproc)
    batch = asked
    while batch > least and any(
        count > held
        for count, held in zip(mixture_counts(config.data.sources, batch), samples, strict=True)
    ):
        batch -= 1
    if batch == asked:
        return config, ""
    counts = ", ".join(
        f"{held} {source.name}" for source, held in zip(config.data.sources, samples, strict=True)
    )
    note = f"Global batch {batch} instead of {asked} where there are {counts} samples."
    return replace(config, run=replace(config.run, global_batch=batch)), note


def least_batch(config: TrainConfig, nproc: int) -> int:
    """The smallest global batch that gives every rank a sample of every source."""
    batch = nproc * len(config.data.sources)
    while min(mixture_counts(config.data.sources, batch)) < nproc:
        batch += 1
    return batch
