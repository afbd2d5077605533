"""Feature pass: every sample of a shard folder -> FeatureStore, resumable.

While it runs, the folder holds ``partial.npy`` (S, F) float16, ``done.npy`` (S,) uint8 (1 = row is
on disk) and ``partial.json`` (which shards and teacher they belong to); a second start computes
only the rows still missing. At the end the rows of good samples become the FeatureStore.

A sample that cannot be read is named, counted and left out of the store, so it gets no label.
Raises MediaError only when not one sample could be read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clustering.teachers import Features, Frames, Teacher
from ovtrain.data.decode.base import decode_image
from ovtrain.data.decode.pyav import decode_clip
from ovtrain.data.shards import ShardReader
from ovtrain.schema.atomic import write_json
from ovtrain.schema.errors import MediaError
from ovtrain.schema.features import FeatureStore
from ovtrain.schema.sample import CLIP, IMAGE, key_hash

CHUNK = 16
SAY_EVERY = 2.0
PARTIAL, DONE, STAMP = "partial.npy", "done.npy", "partial.json"


@dataclass(frozen=True)
class Skipped:
    """A sample left out: ``file`` is ``shard.tar/key``."""

    file: str
    reason: str


@dataclass
class FeaturePass:
    """What a pass made: the store and the samples it had to leave out."""

    store: FeatureStore
    skipped: list[Skipped] = field(default_factory=list[Skipped])


def extract(
    reader: ShardReader,
    teacher: Teacher,
    folder: Path,
    workers: int = 2,
    say: Callable[[str], None] = print,
) -> FeaturePass:
    """Write the FeatureStore of ``reader``'s samples to ``folder`` and return it."""
    rows, done = _open_partial(reader, teacher, folder)
    todo = np.flatnonzero(done == 0)
    if len(todo) < len(done):
        say(f"features: {len(done) - len(todo)} of {len(done)} are already there")
    skipped: list[Skipped] = []
    progress = _Progress(len(todo), say)
    for chunk, found, bad in _computed(reader, teacher, todo, workers):
        rows[chunk] = found
        rows.flush()  # rows before their mask: a crash between the two repeats work, never loses it
        done[chunk] = 1
        done.flush()
        skipped += bad
        progress.step(len(chunk), len(bad))
    store = _finish(reader, teacher, folder, rows, done, skipped)
    return FeaturePass(store, sorted(skipped, key=lambda s: s.file))


def _open_partial(
    reader: ShardReader, teacher: Teacher, folder: Path
) -> tuple[np.memmap[Any, np.dtype[np.float16]], np.memmap[Any, np.dtype[np.uint8]]]:
    shape = (len(reader), teacher.width)
    manifest = reader.manifest
    stamp = {"keys": manifest.fingerprint, "content": manifest.content}
    stamp |= {"teacher": teacher.name, "width": str(teacher.width)}
    paths = [folder / PARTIAL, folder / DONE]
    known = folder / STAMP
    resumes = known.is_file() and json.loads(known.read_text()) == stamp
    if not (resumes and all(path.is_file() for path in paths)):
        known.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(paths[0], "w+", dtype=np.float16, shape=shape).flush()
        np.lib.format.open_memmap(paths[1], "w+", dtype=np.uint8, shape=shape[:1]).flush()
        write_json(known, stamp)
    return np.lib.format.open_memmap(paths[0], "r+"), np.lib.format.open_memmap(paths[1], "r+")


Chunk = tuple[npt.NDArray[np.int64], npt.NDArray[np.float16], list[Skipped]]


def _computed(
    reader: ShardReader, teacher: Teacher, todo: npt.NDArray[np.int64], workers: int
) -> Iterator[Chunk]:
    """Chunks as they finish; decoding and numpy release the GIL, so threads are enough."""
    chunks = (todo[i : i + CHUNK] for i in range(0, len(todo), CHUNK))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        running: set[Future[Chunk]] = {
            pool.submit(_chunk, reader, teacher, c) for c in islice(chunks, 2 * max(1, workers))
        }
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
            running |= {
                pool.submit(_chunk, reader, teacher, c) for c in islice(chunks, len(finished))
            }


def _chunk(reader: ShardReader, teacher: Teacher, samples: npt.NDArray[np.int64]) -> Chunk:
    skipped: list[Skipped] = []
    good: list[int] = []
    frames: list[Frames] = []
    for i in samples.tolist():
        try:
            frames.append(_frames(reader, teacher, i))
            good.append(i)
        except MediaError as error:
            skipped.append(Skipped(reader.name(i), error.found or str(error)))
    found = teacher.features(frames) if frames else np.empty((0, teacher.width), np.float32)
    rows, finite = _half(found)
    for i in np.flatnonzero(~finite).tolist():
        skipped.append(Skipped(reader.name(good[i]), "its feature is not finite in float16"))
    return np.array(good, dtype=np.int64)[finite], rows[finite], skipped


def _half(found: Features) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]]:
    with np.errstate(over="ignore"):
        rows = found.astype(np.float16)
    return rows, np.asarray(np.isfinite(rows).all(axis=1))


def _frames(reader: ShardReader, teacher: Teacher, i: int) -> Frames:
    """Decoded (T, H, W, 3) frames of sample i, T as the teacher wants it. Raises MediaError."""
    where = reader.name(i)
    if reader.manifest.kind != "video":
        return decode_image(reader.member(i, IMAGE), where)[None]
    total = reader.manifest.frames
    wanted = teacher.indices(total)
    frames = decode_clip(reader.member(i, CLIP), where, wanted)
    if len(frames) != (total if wanted is None else len(wanted)):
        raise MediaError(where, f"holds {len(frames)} frames", allowed=f"{total} frames")
    return frames


def _finish(
    reader: ShardReader,
    teacher: Teacher,
    folder: Path,
    rows: npt.NDArray[np.float16],
    done: npt.NDArray[np.uint8],
    skipped: list[Skipped],
) -> FeatureStore:
    good = np.flatnonzero(done)
    if not len(good):
        first = skipped[0] if skipped else Skipped(str(reader.folder), "no samples")
        raise MediaError(
            str(reader.folder),
            f"not one of {len(done)} samples could be read; first {first.file}: {first.reason}",
            fix="check the shards with `ovtrain data verify`",
        )
    features = rows if len(good) == len(done) else rows[good]
    keys = key_hash(reader.keys)[good]
    store = FeatureStore.write(folder, features, keys, teacher.name, reader.manifest.fingerprint)
    for name in (STAMP, PARTIAL, DONE):
        (folder / name).unlink()
    return store


class _Progress:
    """A line at most every ``SAY_EVERY`` seconds, and one at the end."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.say = total, say
        self.done = self.bad = 0
        self.start = self.said = time.monotonic()

    def step(self, good: int, bad: int) -> None:
        self.done += good + bad
        self.bad += bad
        now = time.monotonic()
        if now - self.said < SAY_EVERY and self.done < self.total:
            return
        self.said = now
        rate = self.done / max(now - self.start, 1e-9)
        self.say(f"features: {self.done} of {self.total}, {rate:.1f}/s, {self.bad} skipped")
