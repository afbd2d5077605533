"""Feature pass: every sample of a shard folder -> FeatureStore, by any number of tasks, resumable.

The pass is cut into parts (``clustering.parts``). Task i of N makes parts i, i + N, ...: N is the
world size under torchrun, the length of a SLURM array, or 1. Tasks never speak to each other; the
one that finds all parts there writes ``store.json``. A task that starts again computes only the
rows that are still missing, and one that has nothing to do leaves everything as it is.

Rows do not depend on how parts are dealt, nor on where a pass was cut: a part's batches are the
same samples each time. Memory: one part's rows, and the frames decoded ahead of the teacher.

A sample that cannot be read, or whose feature is not finite, is counted, named in
``part-00000.skipped.jsonl`` and left out, so it gets no label. A feature of length zero is a
feature. MediaError where not one sample of all parts could be read. F teacher width.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clustering.decoding import Batch, Decoder
from clustering.parts import PARTIAL, Indices, Partial, PartPlan, plan_parts
from clustering.progress import Progress
from clustering.teachers import Features, Teacher, store_files
from ovtrain.data.shards import ShardReader
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import LabelError, MediaError
from ovtrain.schema.features import (
    FIX,
    KIND,
    VERSION,
    FeatureStore,
    Part,
    Rows,
    write_part,
    write_store,
)
from ovtrain.schema.labels import STORE, read_description

SKIPPED = ".skipped.jsonl"
STALE_S = 3600.0
"""A temporary file that nobody has written to for so long was left by a process that died."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class PassSettings:
    """``workers`` threads decode, ``batch`` samples go through the teacher at once, a part has
    ``part_samples``."""

    workers: int
    batch: int
    part_samples: int


@dataclass(frozen=True)
class Skipped:
    """A sample left out: ``file`` is ``shard.tar/key``."""

    file: str
    reason: str


@dataclass(frozen=True)
class FeaturePass:
    """What a pass made: the store, and by its parts what had to be left out."""

    store: FeatureStore

    @property
    def skipped_count(self) -> int:
        return sum(part.skipped for part in self.store.parts)

    def skipped(self) -> Iterator[Skipped]:
        """By part and name, read from disk: there may be millions."""
        for part in self.store.parts:
            yield from _read_skipped(self.store.folder, part.name)


def extract(
    reader: ShardReader,
    teacher: Teacher,
    folder: Path,
    settings: PassSettings,
    *,
    task: int = 0,
    tasks: int = 1,
    say: Say = print,
) -> FeaturePass | None:
    """Make this task's parts of the FeatureStore in ``folder``. None while other tasks have parts
    to make."""
    plans = plan_parts(reader.manifest, teacher, settings.part_samples)
    folder.mkdir(parents=True, exist_ok=True)
    _drop_other_store(folder, plans)
    store_files(teacher, folder)
    mine = plans[task::tasks]
    todo = [plan for plan in mine if plan.finished(folder) is None]
    name = "features" if tasks == 1 else f"features, task {task} of {tasks}"
    if len(todo) < len(mine):
        say(f"{name}: {len(mine) - len(todo)} of {len(mine)} parts are already there")
    progress = Progress(name, sum(plan.count for plan in todo), say)
    with Decoder(reader, teacher, settings.workers, settings.batch) as decoder:
        for plan in todo:
            _make_part(decoder, plan, folder, settings.batch, progress)
    return finish(reader, teacher, folder, settings)


def finish(
    reader: ShardReader, teacher: Teacher, folder: Path, settings: PassSettings
) -> FeaturePass | None:
    """The pass whose parts are all there, its ``store.json`` written if it was not; None where some
    are missing. Raises MediaError where they hold not one sample."""
    plans = plan_parts(reader.manifest, teacher, settings.part_samples)
    parts = list[Part]()
    for plan in plans:
        part = plan.finished(folder)
        if part is None:
            return None
        parts.append(part)
    if not sum(part.samples for part in parts):
        raise _nothing(reader, folder, parts)
    if _listed(folder) != parts:
        files = store_files(teacher, folder)
        write_store(folder, parts, teacher.name, reader.manifest.fingerprint, files)
    _sweep(folder, {part.name for part in parts})
    return FeaturePass(FeatureStore(folder))


def _make_part(
    decoder: Decoder, plan: PartPlan, folder: Path, batch: int, progress: Progress
) -> None:
    reader, teacher = decoder.reader, decoder.teacher
    partial = Partial(folder, plan, teacher.width)
    try:
        there = int(partial.done.sum())
        if there:
            about = f"{there} of {plan.count} samples of {plan.name} are already there"
            progress.say(f"{progress.name}: {about}")
            progress.total -= there
        skipped = list[Skipped]()
        for cut, rows, features, bad in _computed(decoder, plan, partial.done, batch, progress):
            partial.write(rows, features)
            skipped += bad
            progress.step(cut, len(bad))
        if plan.finished(folder) is None:  # else another task made it meanwhile, by mistake
            rows, features = partial.good()
            _write_skipped(folder, plan.name, skipped)
            keys = reader.hashes[plan.first + rows]
            write_part(folder, plan.name, features, keys, stamp=plan.stamp, skipped=len(skipped))
    finally:
        partial.close()
    partial.path.unlink(missing_ok=True)


Computed = tuple[int, Indices, Rows, list[Skipped]]


def _computed(
    decoder: Decoder, plan: PartPlan, done: npt.NDArray[np.bool_], batch: int, progress: Progress
) -> Iterator[Computed]:
    """Per batch: its samples, rows within the part, their features, and what was left out."""
    batches = decoder.batches(_cuts(plan, done, batch))
    while True:
        with progress.waiting():
            found = next(batches, None)
        if found is None:
            return
        good, features, bad = _features(decoder, found)
        yield len(found[0]), good - plan.first, features, bad


def _cuts(plan: PartPlan, done: npt.NDArray[np.bool_], batch: int) -> Iterator[Indices]:
    """Missing samples, those of each ``batch`` places of the part together: which samples the
    teacher sees at once does not depend on where the pass was cut."""
    for start in range(0, plan.count, batch):
        missing = np.flatnonzero(~done[start : start + batch])
        if len(missing):
            yield missing + plan.first + start


def _features(decoder: Decoder, batch: Batch) -> tuple[Indices, Rows, list[Skipped]]:
    reader, teacher = decoder.reader, decoder.teacher
    good, frames, skipped = list[int](), list[npt.NDArray[np.uint8]](), list[Skipped]()
    for i, found in zip(batch[0].tolist(), batch[1], strict=True):
        if isinstance(found, MediaError):
            skipped.append(Skipped(reader.name(i), found.found or str(found)))
        else:
            good.append(i)
            frames.append(found)
    made = teacher.features(frames) if frames else np.empty((0, teacher.width), np.float32)
    rows, finite = _half(made)
    for at in np.flatnonzero(~finite).tolist():
        skipped.append(Skipped(reader.name(good[at]), "its feature is not finite in float16"))
    return np.array(good, dtype=np.int64)[finite], rows[finite], skipped


def _half(found: Features) -> tuple[Rows, npt.NDArray[np.bool_]]:
    with np.errstate(over="ignore"):
        rows = found.astype(np.float16)
    return rows, np.asarray(np.isfinite(rows).all(axis=1))


def _nothing(reader: ShardReader, folder: Path, parts: Iterable[Part]) -> MediaError:
    named = (entry for part in parts for entry in _read_skipped(folder, part.name))
    first = next(named, Skipped(str(reader.folder), "no samples"))
    return MediaError(
        str(reader.folder),
        f"not one of {len(reader)} samples could be read; first {first.file}: {first.reason}",
        fix="check the shards with `ovtrain data verify`",
    )


def _listed(folder: Path) -> list[Part]:
    """What ``store.json`` says is there; nothing where none can be read."""
    try:
        return [Part(**part) for part in read_description(folder, KIND, VERSION)["parts"]]
    except (LabelError, KeyError, TypeError):
        return []


def files_of_parts(folder: Path) -> list[Path]:
    """What must be there of the parts that ``store.json`` lists."""
    ends = (".json", ".npy", ".keys.npy")
    return [folder / f"{part.name}{end}" for part in _listed(folder) for end in ends]


def _drop_other_store(folder: Path, plans: list[PartPlan]) -> None:
    """A store of other parts must not stand beside those that replace them."""
    if [part.stamp for part in _listed(folder)] != [plan.stamp for plan in plans]:
        (folder / STORE).unlink(missing_ok=True)


def _sweep(folder: Path, parts: set[str]) -> None:
    """Remove what belongs to no part of the store, and what dead processes left."""
    for path in folder.glob("part-*"):
        if path.name.partition(".")[0] not in parts or path.suffix == PARTIAL:
            path.unlink(missing_ok=True)
    for path in folder.glob(".*.tmp"):
        try:
            stale = time.time() - path.stat().st_mtime > STALE_S
        except FileNotFoundError:  # its process finished just now
            continue
        if stale:
            path.unlink(missing_ok=True)


def _write_skipped(folder: Path, name: str, skipped: Iterable[Skipped]) -> None:
    with atomic_open(folder / f"{name}{SKIPPED}", "w") as handle:
        for entry in sorted(skipped, key=lambda s: s.file):
            handle.write(json.dumps(asdict(entry)) + "\n")


def _read_skipped(folder: Path, name: str) -> Iterator[Skipped]:
    path = folder / f"{name}{SKIPPED}"
    try:
        with open(path) as handle:
            for line in handle:
                yield Skipped(**json.loads(line))
    except (ValueError, TypeError) as error:
        found = f"not a list of skipped samples ({error})"
        raise LabelError(str(path), found, fix=FIX) from error
