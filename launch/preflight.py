"""Checks before a process starts, without torch; all problems at once.

Config problems are always fatal. Data problems (a manifest, a tar, labels or a checkpoint that is
absent or does not match; a disk that is full or that nobody may write to) may be tolerated in a dry
run, on a machine that is not the one that trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.plan.job import memory_problem
from launch.plan.step import classes_of
from launch.run_folder import GIB, checkpoint_bytes, disk_problems, other_run, place_problems
from ovtrain.config.data import SourceConfig, mixture_counts
from ovtrain.config.layout import data_ranks, layout_problems, tensor_sizes
from ovtrain.config.train import TrainConfig
from ovtrain.config.validate import problems
from ovtrain.schema.errors import ConfigError, OvtrainError
from ovtrain.schema.labels import check_classes, check_fingerprint, read_description
from ovtrain.schema.manifest import ShardManifest


@dataclass
class Findings:
    """Problems by kind, each a sentence; notes are no problems."""

    config: list[str] = field(default_factory=list[str])
    data: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

    def check(self, where: str, *, allow_missing_data: bool = False) -> None:
        """Raise one ConfigError listing every problem that counts."""
        counted = self.config + ([] if allow_missing_data else self.data)
        if counted:
            raise ConfigError(where, "\n  ".join(["", *counted]) if counted[1:] else counted[0])


def preflight(config: TrainConfig, world: int, gpu: str = "", per_node: int = 0) -> Findings:
    """Everything that can be known to be wrong before training starts on ``world`` ranks, of which
    a node has ``per_node`` (0: all of them). With the name of a ``gpu``, whether its memory holds a
    rank (computed)."""
    per_node = per_node or world
    found = Findings(config=problems(config))
    if not found.config:
        classes = _classes(config)
        found.config += rank_problems(config, world)
        if gpu and not found.config and (x := memory_problem(config, world, per_node, gpu)):
            found.config.append(x)
        for source in config.data.sources:
            _check_source(config, source, found)
        found.notes += _idle_micro_batch(config, world)
        _check_start(config.run.init_from, found)
        found.notes += _across_nodes(config, per_node)
        found.notes += _thin_heads(config, classes, world)
        found.config += other_run(config)
        _check_places(config, classes, found)
    return found


def rank_problems(config: TrainConfig, world: int) -> list[str]:
    """Whether a run can be dealt to ``world`` ranks: samples, heads of attention, class rows."""
    classes = _known(config, _classes(config))
    return batch_problems(config, world) + layout_problems(config, world, classes)


def _classes(config: TrainConfig) -> list[int | None]:
    return [classes_of(x) if x.labels else None for x in config.data.sources]


def _known(config: TrainConfig, classes: Sequence[int | None]) -> dict[str, int]:
    """Classes of each source with labels that could be read."""
    found = zip(config.data.sources, classes, strict=True)
    return {source.name: count for source, count in found if count is not None}


def _across_nodes(config: TrainConfig, per_node: int) -> list[str]:
    tensor = config.run.tensor_parallel
    if per_node % tensor == 0:
        return []
    return [
        f"run.tensor_parallel={tensor} does not divide a node's {per_node} ranks: tensor groups "
        "lie across nodes and send all tokens over the network, several times per block"
    ]


def _thin_heads(config: TrainConfig, classes: Sequence[int | None], world: int) -> list[str]:
    """Heads that train, but hardly as they were meant to."""
    found: list[str] = []
    for source, count in zip(config.data.sources, classes, strict=True):
        if count is None:
            continue
        rate = config.head_of(source.name).sample_rate
        if rate < 1 and count * rate < world:
            found.append(
                f"source {source.name}: head.sample_rate={rate:g} of {count:,} classes draws "
                f"{count * rate:.1f} rows per step over {world:,} ranks; raise it"
            )
    return found


def _check_places(config: TrainConfig, classes: Sequence[int | None], found: Findings) -> None:
    """Folders and disks. Heads of unknown size are left out of the size of checkpoints."""
    places, one = place_problems(config), checkpoint_bytes(config, classes)
    found.data += places or disk_problems(config, one)
    unknown = [
        source.name
        for source, count in zip(config.data.sources, classes, strict=True)
        if source.labels and count is None
    ]
    without = f", without the heads of {', '.join(unknown)}" if unknown else ""
    found.notes.append(f"checkpoints of {one / GIB:,.2f} GiB each{without}")


def batch_problems(config: TrainConfig, world: int) -> list[str]:
    """Each source's share of the global batch gives every data rank at least one sample."""
    counts = mixture_counts(config.data.sources, config.run.global_batch)
    total = sum(source.share for source in config.data.sources)
    ranks, kind = data_ranks(config, world), "data ranks" if _divided(config) else "ranks"
    found: list[str] = []
    for source, count in zip(config.data.sources, counts, strict=True):
        if count < ranks:
            needed = -(-ranks * total // source.share)
            found.append(
                f"run.global_batch={config.run.global_batch} gives source {source.name} {count} "
                f"samples for {ranks} {kind}; use at least {needed:.0f}, or "
                f"{_fewer_ranks(config, world, min(counts))}"
            )
    return found


def _fewer_ranks(config: TrainConfig, world: int, samples: int) -> str:
    """What deals every source's samples, ``samples`` of the smallest, to no more data ranks."""
    tensor = config.run.tensor_parallel
    text = f"at most {samples * tensor} ranks"
    shared = [
        n for n in tensor_sizes(config.model.size) if world % n == 0 and world // n <= samples
    ]
    if shared:
        text += f", or run.tensor_parallel={min(shared)}"
    return text


def _divided(config: TrainConfig) -> bool:
    return config.run.tensor_parallel > 1


def _idle_micro_batch(config: TrainConfig, world: int) -> list[str]:
    ranks, micro = max(data_ranks(config, world), 1), config.run.micro_batch
    share = -(-config.run.global_batch // ranks)
    if micro <= share:
        return []
    whose = "data rank" if _divided(config) else "rank"
    return [f"run.micro_batch={micro} has no effect: a {whose}'s share of the batch is {share}"]


def _check_source(config: TrainConfig, source: SourceConfig, found: Findings) -> None:
    try:
        manifest = ShardManifest.read(source.shards)
        manifest.check_files(Path(source.shards))
    except OvtrainError as error:
        found.data.append(f"source {source.name}: {error}")
        return
    found.data += [f"source {source.name}: {t}" for t in _mismatches(config, source, manifest)]
    found.notes.append(
        f"source {source.name}: {manifest.samples:,} samples in {len(manifest.shards)} shards"
    )
    if source.labels:
        _check_labels(config, source, manifest, found)


def _mismatches(config: TrainConfig, source: SourceConfig, manifest: ShardManifest) -> list[str]:
    """Geometry of the shards against the config, and the token budget against clips' own side."""
    asked, size, budget = {"patch": config.model.patch}, config.data.size_of(source), list[str]()
    if manifest.kind == "video":
        asked |= {"frames": config.data.clip_frames}
        # Larger clips are cropped.
        for side in ("height", "width"):
            if getattr(manifest, side) < size:
                asked[side] = size
        budget = config.data.video_problems(size, config.model.patch)
    return budget + [
        f"{source_key}={getattr(manifest, source_key)} in the shards, the config asks {value}; "
        "prepare the data again or change the config"
        for source_key, value in asked.items()
        if getattr(manifest, source_key) != value
    ]


def _check_labels(
    config: TrainConfig, source: SourceConfig, manifest: ShardManifest, found: Findings
) -> None:
    try:
        about = read_description(source.labels, "labels")
        check_fingerprint(Path(source.labels), about, manifest.fingerprint)
        check_classes(source.name, source.labels, int(about["classes"]), source.classes)
    except OvtrainError as error:
        found.data.append(f"source {source.name}: {error}")
        return
    classes = int(about["classes"])
    found.notes.append(f"source {source.name}: {classes:,} classes")
    if source.centroids:
        found.data += _centroid_problems(source, classes, config.model.size.width)


def _centroid_problems(source: SourceConfig, classes: int, width: int) -> list[str]:
    """Whether the rows of the source's head can start from its centroids."""
    try:
        about = read_description(source.centroids, "centroids")
    except OvtrainError as error:
        return [f"source {source.name}: {error}"]
    held = (int(about["clusters"]), int(about["width"]))
    if held == (classes, width):
        return []
    return [
        f"source {source.name}: {source.centroids} holds {held[0]:,} centroids of width {held[1]}; "
        f"head.init=centroids needs {classes:,} (the classes) of width {width} (the encoder's); "
        "use head.init=normal"
    ]


def _check_start(init_from: str, found: Findings) -> None:
    folder = Path(init_from)
    saved = ("checkpoints/latest", "latest", "state.json", "config.json")
    if init_from and not any((folder / name).is_file() for name in saved):
        found.data.append(
            f"run.init_from={init_from}: no checkpoint here; train that stage first, or name a "
            "folder in the public format"
        )
