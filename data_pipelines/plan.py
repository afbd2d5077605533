"""From an inventory to what is made of it: filters, exact duplicates, sample keys, places of clips.

A pure function of (inventory, spans of a list, scene cuts, config). F frames of a video.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_pipelines.images import still_indices
from data_pipelines.inventory.probe import PictureRecord, Record, VideoRecord
from data_pipelines.inventory.scan import Span
from data_pipelines.inventory.stage import as_row
from data_pipelines.job import skip
from data_pipelines.journal import Row
from ovtrain.config.prepare import FilterConfig, PrepareConfig
from ovtrain.schema.sample import Kind, key_hash

MAX_KEY = 60
"""Longest key taken from a file name; tar names hold 100 characters with all suffixes."""
DEFAULT_FPS = 30.0
"""Assumed where a file states no rate."""


@dataclass(frozen=True)
class Place:
    """A clip of a video: its first frame, and how many frames it may take from there on.
    ``elsewhere``: where the video ends before them, its beginning does as well. ``begin``, ``end``:
    seconds, of places in a span of a list."""

    start: int
    frames: int
    elsewhere: bool = False
    begin: float | None = None
    end: float | None = None


def why_filtered(record: Record, config: FilterConfig) -> str:
    """Why a record is left out, or ""."""
    low, high = sorted((record.width, record.height))
    size = f"{record.width} x {record.height}"
    if low < config.min_side:
        return f"smaller than filters.min_side ({size})"
    if config.max_aspect and high > config.max_aspect * low:
        return f"longer than filters.max_aspect ({size})"
    return _filtered_video(record, config) if isinstance(record, VideoRecord) else ""


def _filtered_video(record: VideoRecord, config: FilterConfig) -> str:
    values = {"fps": record.fps, "seconds": record.duration}
    for name, value in values.items():
        if value and value < getattr(config, f"min_{name}"):
            return f"below filters.min_{name} ({value:g})"
        bound = getattr(config, f"max_{name}")
        if value and bound and value > bound:
            return f"above filters.max_{name} ({value:g})"
    return ""


class Originals:
    """Tells media whose bytes were there before; as another kind of sample, or with other listed
    times, they count as others."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], str] = {}

    def of(self, record: Record, used_as: Sequence[Kind | Span]) -> str:
        """Name of the first with these bytes and this use; its own name where it is that. Records
        without a content hash are all different."""
        if not record.content:
            return record.path
        return self._first.setdefault((record.content, repr(used_as)), record.path)


class Keys:
    """Sample keys from file names: the stem in [A-Za-z0-9_-], made unique in order, together with
    the keys that are derived from it."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}

    def __call__(self, name: str, derived: Sequence[str] = ("",)) -> str:
        """``derived``: what is appended to it for the samples of this file."""
        base = re.sub(r"[^A-Za-z0-9_-]", "_", Path(name).stem)[:MAX_KEY] or "_"
        key = base
        while any(key + end in self._taken for end in derived):
            number = self._numbers[base] = self._numbers.get(base, 1) + 1
            key = f"{base}-{number}"
        self._taken.update(key + end for end in derived)
        return key


def kind_of(record: Record, read: Set[str]) -> Kind:
    """``read``: names of the pictures that an OCR engine has read."""
    if isinstance(record, PictureRecord):
        return "document" if record.path in read else "image"
    return "video"


def places(
    record: VideoRecord, spans: Sequence[Span], cuts: Sequence[int], config: PrepareConfig
) -> list[Place]:
    """The clips of a video: ``config.clips_per_video`` at seeded places of each span, sorted; one
    at the start of a span without end; none of a span behind the video's end. None lies across a
    cut where there is a piece that is long enough; otherwise the longest piece gives one clip of
    fewer frames."""
    rng = np.random.default_rng([config.seed, int(key_hash([record.path])[0])])
    found = [place for span in spans for place in _places_in(record, span, cuts, config, rng)]
    return sorted(dict.fromkeys(found), key=lambda place: (place.start, place.frames))


def _places_in(
    record: VideoRecord,
    span: Span,
    cuts: Sequence[int],
    config: PrepareConfig,
    rng: np.random.Generator,
) -> Iterator[Place]:
    first, stop = _frames(record, span)
    if first >= stop:
        return
    if span and span[1] is None:
        behind = [cut - first for cut in cuts if cut > first]
        yield Place(first, min([config.frames, *behind[:1]]), begin=span[0])
        return
    edges = [first, *(cut for cut in cuts if first < cut < stop), stop]
    wide = [(a, b) for a, b in pairwise(edges) if b - a >= config.frames]
    if not wide:
        a, b = max(pairwise(edges), key=lambda piece: piece[1] - piece[0])
        # The header's count is not trusted where nothing else bounds the clip.
        frames = b - a if span or len(edges) > 2 else config.frames
        yield Place(a, frames, False, *_times(span, a, record))
        return
    counts = [b - a - config.frames + 1 for a, b in wide]
    chosen = rng.choice(sum(counts), size=min(config.clips_per_video, sum(counts)), replace=False)
    ends = np.cumsum(counts)
    for number in chosen.tolist():
        piece = int(np.searchsorted(ends, number, side="right"))
        start = wide[piece][0] + number - int(ends[piece] - counts[piece])
        alone = not span and not cuts and config.clips_per_video == 1
        yield Place(start, config.frames, alone, *_times(span, start, record))


def _times(span: Span, start: int, record: VideoRecord) -> tuple[float | None, float | None]:
    """``begin`` and ``end`` of a place in a span of a list."""
    if span is None:
        return None, None
    return max(start / (record.fps or DEFAULT_FPS), span[0]), span[1]


def _frames(record: VideoRecord, span: Span) -> tuple[int, int]:
    """First frame and the one behind the last."""
    fps = record.fps or DEFAULT_FPS
    end = record.frames or max(int(record.duration * fps), 1)
    if span is None:
        return 0, end
    first = round(span[0] * fps)
    if span[1] is not None:
        stop = max(round(span[1] * fps), first + 1)
        return first, min(stop, end) if end > 1 else stop
    return first, end if end > 1 else first + 1


def plan_rows(
    found: Iterable[tuple[Record, list[Span]]],
    cuts: Iterator[Row] | None,
    read: Set[str],
    config: PrepareConfig,
) -> Iterator[Row]:
    """A row per clip or picture: {"kind", "key", "name", "record", "place"}; {"skipped"} and
    {"duplicate": [name, of]} for media that give none. ``cuts``: rows of that stage, which are
    those of the videos in order; ``read``: names of the pictures with words."""
    originals, keys = Originals(), Keys()
    for record, spans in found:
        at = next(cuts) if cuts and isinstance(record, VideoRecord) else {"cuts": []}
        assert at.get("path", record.path) == record.path, (at, record)
        kind = kind_of(record, read)
        original = originals.of(record, [kind, *spans])
        reason = why_filtered(record, config.filters)
        if reason or "cuts" not in at:
            yield skip(record.path, reason) if reason else {"skipped": at["skipped"]}
        elif original != record.path:
            yield {"duplicate": [record.path, original]}
        else:
            yield from _rows_of(record, spans, at["cuts"], kind, keys, config)


def _rows_of(
    record: Record,
    spans: list[Span],
    cuts: Sequence[int],
    kind: Kind,
    keys: Keys,
    config: PrepareConfig,
) -> Iterator[Row]:
    row = as_row(record)
    if isinstance(record, PictureRecord):
        key = keys(record.path)
        yield {"kind": kind, "key": key, "name": record.path, "record": row, "place": None}
        return
    clips = places(record, spans, cuts, config)
    if not clips:
        yield skip(record.path, "its listed times lie behind its end")
        return
    ends = [f"-c{number}" for number in range(len(clips))] if clips[1:] else [""]
    stills = ["", *(f"-f{n:02d}" for n in still_indices(config.frames, config.images_per_clip))]
    key = keys(record.path, [end + still for end in ends for still in stills])
    for end, place in zip(ends, clips, strict=True):
        name = f"{record.path}, frame {place.start}" if end else record.path
        about = {"kind": kind, "key": key + end, "name": name}
        yield {**about, "record": row, "place": astuple(place)}
