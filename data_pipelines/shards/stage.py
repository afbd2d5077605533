"""The stages that turn samples into shards: ``select`` (one item per shard: which samples) and
``shards`` (the tars)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.dedup.looks import alike
from data_pipelines.job import WORK, Job
from data_pipelines.journal import Row, StageError
from data_pipelines.shards.writer import write_shard
from data_pipelines.store import read_sample
from data_pipelines.workers import Failure
from ovtrain.config.prepare import PrepareConfig
from ovtrain.schema.manifest import MANIFEST, ShardInfo
from ovtrain.schema.sample import MEMBERS


def select_rows(rows: Callable[[], Iterable[Row]], config: PrepareConfig) -> Iterator[Row]:
    """{"kind", "shard", "samples"}: the samples of each kind in their order, as many a shard as
    ``config`` says; {"duplicate": [key, of]} for each that is left out. ``rows``: of samples, from
    the first each time."""
    near = alike(rows(), config.dedup.distance) if config.dedup.near else {}
    waiting: dict[str, list[Row]] = {kind: [] for kind in MEMBERS}
    numbers = dict.fromkeys(MEMBERS, 0)

    def shard(kind: str) -> Row:
        row = {"kind": kind, "shard": numbers[kind], "samples": waiting[kind]}
        numbers[kind], waiting[kind] = numbers[kind] + 1, []
        return row

    for sample in (sample for row in rows() for sample in row.get("samples", ())):
        kind = sample["kind"]
        original = near.get(kind, {}).get(sample["key"])
        if original:
            yield {"duplicate": [sample["key"], original]}
            continue
        waiting[kind].append(sample)
        if len(waiting[kind]) == config.samples_per_shard:
            yield shard(kind)
    yield from (shard(kind) for kind in MEMBERS if waiting[kind])


def shard_rows(job: Job, chosen: list[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """{"kind", "info": ShardInfo} of each shard. Raises StageError where one cannot be written."""
    for kind in {row["kind"] for _, row in chosen}:
        # A rewrite that is cut short must not look like the finished shards of before.
        (job.out / kind / MANIFEST).unlink(missing_ok=True)
    work = partial(_write, job.out)
    for index, answer in job.each("shards", work, [row for _, row in chosen], "shards"):
        number, row = chosen[index]
        if isinstance(answer, Failure):
            raise StageError(f"{row['kind']}, shard {row['shard']}", answer.reason)
        yield number, {"kind": row["kind"], "info": asdict(answer)}


def _write(out: Path, row: dict[str, Any]) -> ShardInfo:
    kind = row["kind"]
    samples = [read_sample(out / WORK, sample) for sample in row["samples"]]
    return write_shard(out / kind, kind, row["shard"], kind, samples)
