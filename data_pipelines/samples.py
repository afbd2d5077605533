"""One source file -> its samples, kept in a small tar until the shards are written.

The tar is the unit of resumption: a run that was interrupted finds those that are done. Its name
holds the file's state and the configuration, so a changed file or setting is never taken for done.
"""

from __future__ import annotations

import json
import re
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from data_pipelines.images import still_images
from data_pipelines.inventory.probe import VideoRecord
from data_pipelines.shards.writer import Sample, write_tar
from data_pipelines.signals import score_clip
from data_pipelines.stages import file_state, fingerprint
from data_pipelines.transcode import Clip, cut_clips
from ovtrain.config.prepare import PrepareConfig
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.grid import PatchGrid
from ovtrain.schema.sample import CLIP, ENERGY, IMAGE, META, SampleMeta

MAX_KEY = 60
"""Longest key taken from a file name; tar names hold 100 characters with all suffixes."""
REPORT = "report.json"


@dataclass(frozen=True)
class FileTask:
    """One file to prepare: where it lies, what it is, its key, the tar to write."""

    folder: Path
    record: VideoRecord
    key: str
    out: Path
    config: PrepareConfig


@dataclass
class FileReport:
    """What became of one file; seconds by step."""

    clips: int = 0
    images: int = 0
    passed_through: int = 0
    transcoded: int = 0
    resampled: int = 0
    origins: dict[str, int] = field(default_factory=dict[str, int])
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, other: FileReport) -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, dict):
                for key, number in value.items():
                    mine[key] = mine.get(key, 0) + number
            else:
                setattr(self, name, mine + value)


def unique_keys(names: Sequence[str]) -> list[str]:
    """Sample keys from file names: the stem in [A-Za-z0-9_-], made unique in order."""
    taken: set[str] = set()
    keys: list[str] = []
    for name in names:
        base = re.sub(r"[^A-Za-z0-9_-]", "_", Path(name).stem)[:MAX_KEY]
        key, number = base, 1
        while key in taken:
            number += 1
            key = f"{base}-{number}"
        taken.add(key)
        keys.append(key)
    return keys


def staged_path(work: Path, key: str, media: Path, config: PrepareConfig) -> Path:
    """Where the samples of a file in its present state wait for the shards."""
    settings = asdict(replace(config, workers=0, samples_per_shard=1))
    return work / f"{key}.{fingerprint(file_state(media), settings)[:12]}.tar"


def prepare_file(task: FileTask) -> None:
    """Make all samples of one file and write them to ``task.out``. Raises MediaError."""
    report, samples = FileReport(), list[Sample]()
    began = time.perf_counter()
    for number, clip in enumerate(cut_clips(task.folder, task.record, task.config)):
        report.add(FileReport(seconds={"clip": time.perf_counter() - began}))
        key = f"{task.key}-c{number}" if task.config.clips_per_video > 1 else task.key
        made, part = _clip_samples(task, key, clip)
        samples += made
        report.add(part)
        began = time.perf_counter()
    summary = json.dumps(asdict(report)).encode()
    with atomic_open(task.out) as handle:
        write_tar(handle, [*samples, (task.key, {REPORT: summary})])


def _clip_samples(task: FileTask, key: str, clip: Clip) -> tuple[list[Sample], FileReport]:
    config = task.config
    grid = PatchGrid.from_pixels(config.frames, config.size, config.size, config.patch)
    began = time.perf_counter()
    scored = score_clip(clip, grid, config.energy)
    scored_at = time.perf_counter()
    meta = SampleMeta(
        key=key,
        kind="video",
        source="video",
        frames=config.frames,
        height=config.size,
        width=config.size,
        fps=clip.fps,
        origin=scored.origin,
        media=Path(task.record.path).name,
        start=clip.start,
    )
    members = {CLIP: clip.payload, ENERGY: scored.payload(), META: meta.to_json()}
    stills = still_images(clip.payload, config.frames, config.images_per_clip)
    images = [_image_sample(meta, frame, jpeg) for frame, jpeg in stills]
    report = FileReport(
        clips=1,
        images=len(images),
        passed_through=int(not clip.transcoded),
        transcoded=int(clip.transcoded),
        resampled=int(clip.resampled),
        origins={scored.origin: 1},
        seconds={"energy": scored_at - began, "images": time.perf_counter() - scored_at},
    )
    return [(key, members), *images], report


def _image_sample(clip: SampleMeta, frame: int, jpeg: bytes) -> Sample:
    key = f"{clip.key}-f{frame:02d}"
    meta = SampleMeta(
        key=key,
        kind="image",
        source="image",
        frames=1,
        height=clip.height,
        width=clip.width,
        fps=0.0,
        origin="",
        media=clip.media,
        start=clip.start + frame,
    )
    return key, {IMAGE: jpeg, META: meta.to_json()}


def read_samples(path: Path) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Samples of a staged tar, in the order they were made; the report comes last."""
    key, members = "", dict[str, bytes]()
    with tarfile.open(path, mode="r:") as tar:
        for info in tar:
            handle = tar.extractfile(info)
            assert handle is not None
            found, _, name = info.name.partition(".")
            if name == REPORT or found != key:
                if members:
                    yield key, members
                key, members = found, {}
            members[name] = handle.read()
    yield key, members


def parse_report(payload: bytes) -> FileReport:
    """The report that ``prepare_file`` left beside the samples."""
    return FileReport(**json.loads(payload))
