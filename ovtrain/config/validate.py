"""Rules that span sections of a training config; every section's own rules are collected too."""

from __future__ import annotations

from ovtrain.config.data import mixture_counts
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


def _spanning(config: TrainConfig) -> list[str]:
    found: list[str] = []
    data, patch = config.data, config.model.patch
    if data.size % patch:
        below = max(data.size // patch, 1) * patch
        found.append(
            f"data.size={data.size} must be a multiple of model.patch={patch}; "
            f"use {below} or {below + patch}"
        )
        return found
    per_frame = (data.size // patch) ** 2
    budget = data.token_budget
    if data.views.frames + data.views.tiling > 0 and budget != data.chunks * per_frame:
        found.append(
            f"data.token_budget={budget} with views frames and tiling must be data.chunks="
            f"{data.chunks} times {per_frame} ({data.size // patch}x{data.size // patch} patches "
            f"per frame); use {data.chunks * per_frame}"
        )
    if not per_frame <= budget <= data.clip_frames * per_frame:
        found.append(
            f"data.token_budget={budget}; allowed: {per_frame} (one frame) to "
            f"{data.clip_frames * per_frame} (the whole clip)"
        )
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
