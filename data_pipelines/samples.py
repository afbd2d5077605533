"""A clip with its energies and stills, a picture, a document: samples made from one media file.

Workers run ``make_samples``; payloads go back to the parent, which keeps them until the shards are
written (``data_pipelines.store``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines.dedup.looks import look
from data_pipelines.images import reduced, still_images
from data_pipelines.inventory.probe import PictureRecord, Record, VideoRecord
from data_pipelines.inventory.stage import as_record
from data_pipelines.job import Job, skip
from data_pipelines.journal import Row
from data_pipelines.manifests import GONE
from data_pipelines.plan import Place
from data_pipelines.shards.writer import Sample
from data_pipelines.signals import score_clip
from data_pipelines.store import SampleStore
from data_pipelines.transcode import Clip, cut_clip
from data_pipelines.workers import Failure
from ovtrain.config.prepare import PrepareConfig
from ovtrain.schema.errors import MediaError
from ovtrain.schema.grid import PatchGrid
from ovtrain.schema.sample import CLIP, ENERGY, IMAGE, META, Kind, SampleMeta


@dataclass(frozen=True)
class FileTask:
    """A picture, or one clip of a video, to prepare: what the file is, the sample's key and kind,
    the clip's place."""

    folder: Path
    record: Record
    key: str
    kind: Kind
    place: Place | None
    config: PrepareConfig


@dataclass
class FileReport:
    """What became of one file; seconds by step. ``kept``: pictures whose bytes are the file's."""

    clips: int = 0
    images: int = 0
    passed_through: int = 0
    transcoded: int = 0
    resampled: int = 0
    pictures: int = 0
    kept: int = 0
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


@dataclass
class FileSamples:
    """The samples of a file, with what they look like: ``hashes[key]``, where that is asked for."""

    samples: list[tuple[Kind, Sample]] = field(default_factory=list[tuple[Kind, Sample]])
    hashes: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    report: FileReport = field(default_factory=FileReport)


def make_samples(task: FileTask) -> FileSamples:
    """All samples of a clip or picture. Raises MediaError."""
    record = task.record
    check_unchanged(task.folder, record)
    picture = isinstance(record, PictureRecord)
    made = _picture_samples(task, record) if picture else _clip_samples(task, record)
    if task.config.dedup.near:
        for kind, (key, members) in made.samples:
            payload = members[CLIP if kind == "video" else IMAGE]
            made.hashes[key] = look(kind, payload, task.config.frames)
    return made


def check_unchanged(folder: Path, record: Record) -> None:
    """Raises MediaError where a file is another one than the inventory saw."""
    try:
        stat = (folder / record.media.file).stat()
    except OSError as error:
        raise MediaError(record.path, f"{GONE} ({error.strerror})") from error
    if (stat.st_size, stat.st_mtime_ns) != record.state:
        raise MediaError(record.path, "changed since the inventory was taken")


def _clip_samples(task: FileTask, record: VideoRecord) -> FileSamples:
    assert task.place is not None
    began = time.perf_counter()
    clip = cut_clip(task.folder, record, task.place, task.config)
    made = FileSamples(report=FileReport(seconds={"clip": time.perf_counter() - began}))
    _add_clip(made, task, record, clip)
    return made


def _add_clip(made: FileSamples, task: FileTask, record: VideoRecord, clip: Clip) -> None:
    config, key = task.config, task.key
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
        media=Path(record.path).name,
        start=clip.start,
    )
    members = {CLIP: clip.payload, ENERGY: scored.payload(), META: meta.to_json()}
    stills = still_images(clip.payload, config.frames, config.images_per_clip)
    images = [_still_sample(meta, frame, jpeg) for frame, jpeg in stills]
    made.samples.append(("video", (key, members)))
    made.samples.extend(("image", image) for image in images)
    made.report.add(
        FileReport(
            clips=1,
            images=len(images),
            passed_through=int(not clip.transcoded),
            transcoded=int(clip.transcoded),
            resampled=int(clip.resampled),
            origins={scored.origin: 1},
            seconds={"energy": scored_at - began, "images": time.perf_counter() - scored_at},
        )
    )


def _still_sample(clip: SampleMeta, frame: int, jpeg: bytes) -> Sample:
    key = f"{clip.key}-f{frame:02d}"
    size = (clip.height, clip.width)
    return key, _picture_members(key, "image", jpeg, size, clip.media, clip.start + frame)


def _picture_samples(task: FileTask, record: PictureRecord) -> FileSamples:
    began = time.perf_counter()
    config = task.config
    side = config.picture_side or config.size
    data = record.media.read(task.folder)
    picture = reduced(data, record.path, side, config.picture_quality)
    size = np.shape(picture.pixels)[:2]
    media = Path(record.path).name
    members = _picture_members(task.key, task.kind, picture.jpeg, size, media, 0)
    report = FileReport(
        pictures=1, kept=int(picture.kept), seconds={"pictures": time.perf_counter() - began}
    )
    return FileSamples([(task.kind, (task.key, members))], {}, report)


def _picture_members(
    key: str, kind: Kind, jpeg: bytes, size: tuple[int, int], media: str, start: int
) -> dict[str, bytes]:
    meta = SampleMeta(
        key=key,
        kind=kind,
        source=kind,
        frames=1,
        height=size[0],
        width=size[1],
        fps=0.0,
        origin="",
        media=media,
        start=start,
    )
    return {IMAGE: jpeg, META: meta.to_json()}


def sample_rows(
    job: Job, store: SampleStore, planned: list[tuple[int, Row]]
) -> Iterator[tuple[int, Row]]:
    """The stage: {"samples": rows of the store, "report"} or {"skipped"} of each planned row."""
    made = [(number, row) for number, row in planned if "record" in row]
    yield from ((number, {}) for number, row in planned if "record" not in row)
    tasks = [_task(job, row) for _, row in made]
    for index, answer in job.each("samples", make_samples, tasks, "clips and pictures"):
        number, task = made[index][0], tasks[index]
        if isinstance(answer, Failure):
            yield number, skip(made[index][1]["name"], answer.reason)
            continue
        about = {"name": task.record.path}
        rows = [
            {**store.add(kind, sample), **about, "hash": answer.hashes.get(sample[0])}
            for kind, sample in answer.samples
        ]
        store.flush()
        yield number, {"samples": rows, "report": asdict(answer.report)}


def _task(job: Job, row: Row) -> FileTask:
    place = row["place"] and Place(*row["place"])
    record = as_record(row["record"])
    return FileTask(job.folder, record, row["key"], row["kind"], place, job.config)
