"""The stages that look at media: ``inventory`` (one item per file, tars with their members) and
``cuts`` (one item per video)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial

from data_pipelines.inventory.cuts import scene_cuts
from data_pipelines.inventory.media import MediaFile
from data_pipelines.inventory.probe import PictureRecord, Record, VideoRecord, probe
from data_pipelines.inventory.scan import Span, media_in
from data_pipelines.job import Job, skip
from data_pipelines.journal import Row
from data_pipelines.workers import Failure


def inventory_rows(job: Job, files: list[tuple[int, str]]) -> Iterator[tuple[int, Row]]:
    """{"media": records, "spans": of a list, "skipped"} of each file; "" stands for all that is no
    media."""
    rows: dict[int, Row] = {}
    media: list[tuple[int, MediaFile]] = []
    for number, file in files:
        if not file:
            yield number, {"media": [], "spans": [], "skipped": list(job.listing.skipped.items())}
            continue
        skipped: dict[str, str] = {}
        pictures = job.config.pictures
        found = list(media_in(job.folder, file, skipped, pictures=pictures))
        media += [(number, one) for one in found]
        spans = job.listing.spans.get(file, [None])
        rows[number] = {"media": [None] * len(found), "spans": spans}
        rows[number]["skipped"] = list(skipped.items())
    yield from _probed(job, media, rows)


def _probed(
    job: Job, media: list[tuple[int, MediaFile]], rows: dict[int, Row]
) -> Iterator[tuple[int, Row]]:
    """Fill in the records; a file's row comes when all its members are there."""
    places: dict[int, int] = {}
    places_of: list[int] = []
    for number, _ in media:
        places_of.append(places.get(number, 0))
        places[number] = places_of[-1] + 1
    left = {number: places.get(number, 0) for number in rows}
    yield from ((number, rows.pop(number)) for number in [n for n, k in left.items() if not k])
    work = partial(probe, job.folder, content=job.config.dedup.exact)
    for index, answer in job.each("inventory", work, [one for _, one in media]):
        number, one = media[index]
        if isinstance(answer, Failure):
            rows[number]["skipped"].append([one.name, answer.reason])
        else:
            rows[number]["media"][places_of[index]] = as_row(answer)
        left[number] -= 1
        if not left[number]:
            row = rows.pop(number)
            row["media"] = [record for record in row["media"] if record]
            yield number, row


def cuts_rows(job: Job, videos: list[tuple[int, VideoRecord]]) -> Iterator[tuple[int, Row]]:
    """{"path", "cuts": frame numbers} of each video; one that cannot be searched has none."""
    work = partial(_cuts, job)
    answers = job.each("scene cuts", work, [video.media for _, video in videos], "videos")
    for index, answer in answers:
        number, video = videos[index]
        if isinstance(answer, Failure):
            yield number, {"path": video.path, **skip(video.path, answer.reason)}
        else:
            yield number, {"path": video.path, "cuts": answer}


def _cuts(job: Job, media: MediaFile) -> list[int]:
    return scene_cuts(job.folder, media, job.config.scene_cuts)


def as_row(record: Record) -> Row:
    return {"kind": "video" if isinstance(record, VideoRecord) else "picture", **asdict(record)}


def as_record(row: Row) -> Record:
    values = {**row, "state": tuple(row["state"])}
    made = {"video": VideoRecord, "picture": PictureRecord}[values.pop("kind")]
    return made(**values)


def records(rows: Iterable[Row]) -> Iterator[tuple[Record, list[Span]]]:
    """(record, spans) of all media of an inventory."""
    for row in rows:
        for one in row["media"]:
            yield as_record(one), [span and tuple(span) for span in row["spans"]]


def videos(rows: Iterable[Row]) -> Iterator[VideoRecord]:
    return (record for record, _ in records(rows) if isinstance(record, VideoRecord))
