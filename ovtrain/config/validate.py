"""Rules that span sections of a training config; every section's own rules are collected too."""

from __future__ import annotations

from ovtrain.config.data import DataConfig, mixture_counts
from ovtrain.config.layout import model_problems
from ovtrain.config.load import raise_problems
from ovtrain.config.train import TrainConfig
from ovtrain.schema.errors import ConfigError


def problems(config: TrainConfig) -> list[str]:
    """All problems of a config, worded for the user."""
    found: list[str] = []
    sections = (config.model, config.data, config.head, config.optim, config.run, config.guards)
    for section in sections:
        found += section.problems()
    found += _of_heads(config)
    found += [] if config.model.problems() else model_problems(config)
    return found or _spanning(config)


def _of_heads(config: TrainConfig) -> list[str]:
    found: list[str] = []
    names = [source.name for source in config.data.sources]
    for name in config.heads:
        if name not in names:
            found.append(f"heads.{name} is no source; allowed: {', '.join(names)}")
            continue
        try:
            own = config.head_of(name).problems()
        except ConfigError as error:
            found.append(str(error))
            continue
        found += [
            p.replace("head.", f"heads.{name}.") for p in own if p not in config.head.problems()
        ]
    for source in config.data.sources:
        if found:
            break
        wanted = config.head_of(source.name).init == "centroids"
        if wanted and source.labels and not source.centroids:
            found.append(
                f"source {source.name}: head.init=centroids needs centroids, the folder of its "
                "CentroidStore"
            )
        if source.centroids and not (wanted and source.labels):
            found.append(
                f"source {source.name}: centroids has no effect without labels and "
                "head.init=centroids"
            )
        if source.name in config.heads and not source.labels:
            found.append(f"heads.{source.name} has no effect: the source has no labels")
    optim = config.optim
    if max(optim.lr, optim.head_lr or 0) * optim.weight_decay >= 1:
        found.append(
            f"optim.lr={optim.lr:g} or optim.head_lr={optim.head_lr} times optim.weight_decay="
            f"{optim.weight_decay:g} must be below 1: a step would turn weights round"
        )
    return found


def _of_sizes(data: DataConfig, patch: int) -> list[str]:
    """Picture sides against patches and the token budget. Which sources are videos stands in their
    shards alone: here the budget has to fit one of the sides, the loader and the preflight look at
    each video source's own."""
    wanted = {"data.size": data.size}
    wanted |= {f"source {source.name}: size": source.size for source in data.sources if source.size}
    found: list[str] = []
    for key, size in wanted.items():
        if size % patch:
            below = max(size // patch, 1) * patch
            found.append(
                f"{key}={size} must be a multiple of model.patch={patch}; "
                f"use {below} or {below + patch}"
            )
    if found:
        return found
    by_size = [data.video_problems(data.size_of(source), patch) for source in data.sources]
    return [] if [] in by_size else list(dict.fromkeys(p for found in by_size for p in found))


def _spanning(config: TrainConfig) -> list[str]:
    found: list[str] = []
    data = config.data
    if sizes := _of_sizes(data, config.model.patch):
        return sizes
    if not config.model.pooling:
        found.append("model.pooling=false; allowed in training: true, heads read what it pools")
    virtual = config.model.rope_frames
    if virtual is not None and data.clip_frames > virtual:
        found.append(
            f"data.clip_frames={data.clip_frames} exceeds model.rope_frames={virtual}; "
            "sample the clip onto the virtual grid first"
        )
    total = sum(source.share for source in data.sources)
    counts = mixture_counts(data.sources, config.run.global_batch)
    for source, count in zip(data.sources, counts, strict=True):
        if count == 0:
            found.append(
                f"run.global_batch={config.run.global_batch} leaves no sample for source "
                f"{source.name} (share {source.share:g} of {total:g}); "
                "raise run.global_batch or the source's share"
            )
    if 0 < config.run.micro_batch < len(data.sources):
        found.append(
            f"run.micro_batch={config.run.micro_batch} is below the number of sources "
            f"({len(data.sources)}); allowed: 0 (no accumulation) or {len(data.sources)} and more"
        )
    return found


def validate(config: TrainConfig, where: str) -> None:
    """Raise one ConfigError that lists every problem of ``config``."""
    raise_problems(where, problems(config))
