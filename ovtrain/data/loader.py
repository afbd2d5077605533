"""The loader: config -> endless StepBatches, a pure function of (manifests, seed, consumed).

State is one integer per source: samples consumed so far by all ranks together. It survives another
world size and another number of workers. A sample that cannot be read is replaced by a placeholder
without labels, named and counted; a long row of them, of all sources or of one, stops the run.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ovtrain.config.data import DataConfig, mixture_counts
from ovtrain.config.step_plan import StepPlan
from ovtrain.config.train import TrainConfig
from ovtrain.data.batch import PackedBatch, PackedSample, pack
from ovtrain.data.clock import STAGES
from ovtrain.data.faults import BadSample, Row, TooManyBad, by_category
from ovtrain.data.making import Made, SampleTask
from ovtrain.data.pool import SamplePool, Samples
from ovtrain.data.samples import Source
from ovtrain.distributed.context import World
from ovtrain.schema.errors import CheckpointError, ManifestError
from ovtrain.schema.isolated import Failure

log = logging.getLogger(__name__)


class Loading:
    """Where this rank's loading spent its time since the last ``read``."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._samples, self._ready = 0, list[int]()

    def add(self, batch: StepBatch) -> None:
        for stage, value in batch.seconds.items():
            self._seconds[stage] = self._seconds.get(stage, 0.0) + value
        self._samples += sum(micro.samples for micro in batch.micro)
        self._ready.append(batch.ready)

    def read(self) -> dict[str, float]:
        """{"data_ms/STAGE": work per sample, "batches_ready": fewest that were waiting}; {} where
        nothing was loaded."""
        if not self._ready:
            return {}
        found = {f"data_ms/{s}": 1e3 * v / self._samples for s, v in self._seconds.items()}
        found["batches_ready"] = min(self._ready)
        self._seconds, self._samples, self._ready = {}, 0, []
        return found


@dataclass(frozen=True)
class _Asked:
    """A sample under way: ``made`` waits for it."""

    source: Source
    place: int
    task: SampleTask
    made: Callable[[], Made | Failure]


@dataclass(frozen=True)
class StepBatch:
    """One optimizer step's samples of this rank, one PackedBatch per micro-step.

    bad: samples that could not be read; a placeholder without labels stands in for each.
    slots[k]: most samples that any rank holds in micro-step k, the padded size of its gathers;
    rows[k][s]: (B,) int64 places of source s's samples in what is gathered.
    seconds: work by stage, summed over samples; ready: batches that were waiting when this one was
    asked for, itself included.
    """

    micro: list[PackedBatch]
    slots: list[int]
    rows: list[list[Tensor]]
    bad: list[BadSample]
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    ready: int = 0

    def without_patches(self) -> StepBatch:
        """What names the samples, to be kept while the step's metrics are unread."""
        return replace(self, micro=[micro.without_patches() for micro in self.micro])


class Loader:
    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world = config, world
        data, seed = config.data, config.run.seed
        self.sources = [Source(n, s, data, seed) for n, s in enumerate(data.sources)]
        self._check_grids(config.model.patch)
        counts = mixture_counts(data.sources, config.run.global_batch)
        self.plan = StepPlan.build(counts, world.size, config.run.micro_batch)
        self.consumed = [0] * len(self.sources)
        self._row, self._closing = Row(data.max_bad_in_a_row), False
        self._samples = samples_by(data, world)
        self._planner = ThreadPoolExecutor(1, "asks")
        self._assembler = ThreadPoolExecutor(1, "batches")
        self._ahead: deque[Future[StepBatch]] = deque()
        self._next = 0

    def _check_grids(self, patch: int) -> None:
        for source in self.sources:
            if source.grid.patch != patch:
                raise ManifestError(
                    str(source.reader.folder),
                    f"shards made for patches of {source.grid.patch} pixels",
                    allowed=f"model.patch={patch}",
                    fix="prepare the shards with this patch side or change the config",
                )
            source.check_budget()

    def state_dict(self) -> dict[str, int]:
        """Samples consumed per source, by all ranks."""
        names = [source.config.name for source in self.sources]
        return dict(zip(names, self.consumed, strict=True))

    def contents(self) -> dict[str, str]:
        """Hash of each source's shards: equal names over other samples are no resumption."""
        return {source.config.name: source.reader.manifest.content for source in self.sources}

    def name_of(self, source: int, key: int) -> str:
        """``shard.tar/key`` of a sample, by its source's number and key hash."""
        hashes, reader = self.sources[source].hashes, self.sources[source].reader
        found = np.flatnonzero(hashes.view(np.int64) == key)
        return reader.name(int(found[0])) if len(found) else f"{key & (2**64 - 1):016x}"

    def load_state_dict(
        self, state: dict[str, int], contents: dict[str, str] | None = None
    ) -> None:
        """``contents``: of the shards that the state was reached on, where known. Raises
        CheckpointError when the sources, or their shards, are other ones."""
        read = contents or {}
        changed = [name for name, now in self.contents().items() if read.get(name, now) != now]
        if changed:
            raise CheckpointError(
                "data.sources",
                f"the shards of {', '.join(changed)} are not those the checkpoint read",
                fix="put them back, or start another run.out with run.init_from=this run",
            )
        if set(state) != set(self.state_dict()):
            raise CheckpointError(
                "data.sources",
                f"the checkpoint read {sorted(state)}",
                allowed=f"{sorted(self.state_dict())} as configured",
                fix="keep the source names of a run",
            )
        self.consumed = [state[source.config.name] for source in self.sources]
        self._drop_ahead()

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        while len(self._ahead) < self.config.data.prefetch:
            starts = [
                done + self._next * count
                for done, count in zip(self.consumed, self.plan.counts, strict=True)
            ]
            asked = self._planner.submit(self._ask, starts)
            self._ahead.append(self._assembler.submit(self._assemble, asked))
            self._next += 1
        ready = sum(future.done() for future in self._ahead)
        batch = self._ahead.popleft().result()
        self._next -= 1
        for s, count in enumerate(self.plan.counts):
            self.consumed[s] += count
        return replace(batch, ready=ready)

    def close(self) -> None:
        self._closing = True
        self._drop_ahead()
        self._samples.close()
        self._planner.shutdown()
        self._assembler.shutdown()
        for source in self.sources:
            source.reader.close()

    def _drop_ahead(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._next = 0

    def _ask(self, starts: list[int]) -> list[list[_Asked]]:
        """Have the samples of a step made; per micro-step, in packing order."""
        return [
            [
                asked
                for source, start in zip(self.sources, starts, strict=True)
                for asked in self._ask_source(source, start, k)
            ]
            for k in range(self.plan.micro_steps)
        ]

    def _ask_source(self, source: Source, start: int, k: int) -> list[_Asked]:
        places = [start + p for p in self.plan.places(source.number, self.world.rank, k)]
        tasks = [source.task(g) for g in places]
        made = self._samples.submit(tasks)
        return [_Asked(source, *asked) for asked in zip(places, tasks, made, strict=True)]

    def _assemble(self, asked: Future[list[list[_Asked]]]) -> StepBatch:
        micro, bad = list[PackedBatch](), list[BadSample]()
        seconds: dict[str, float] = dict.fromkeys((*STAGES, "pack"), 0.0)
        for part in asked.result():
            samples = [self._taken(one, bad, seconds) for one in part]
            began = time.perf_counter()
            micro.append(pack(samples or [self.sources[0].placeholder()]))
            seconds["pack"] += time.perf_counter() - began
        micro_steps = range(self.plan.micro_steps)
        return StepBatch(
            micro,
            [self.plan.slots(k) for k in micro_steps],
            [
                [torch.from_numpy(self.plan.gathered_rows(s.number, k)) for s in self.sources]
                for k in micro_steps
            ],
            bad,
            seconds,
        )

    def _taken(
        self, asked: _Asked, bad: list[BadSample], seconds: dict[str, float]
    ) -> PackedSample:
        """The sample that was asked for, or a placeholder, and then a line in ``bad``."""
        source, made = asked.source, asked.made()
        if isinstance(made, Made):
            for stage, value in made.seconds.items():
                seconds[stage] += value
            self._row.good(source.config.name)
            return source.sample(asked.place, made, asked.task.view)
        if self._closing:  # its worker was ended
            return source.placeholder()
        one = BadSample(source.config.name, source.name(asked.place), made.reason)
        log.warning("source %s: skipped %s: %s", one.source, one.name, one.reason)
        bad.append(one)
        length = self._row.bad(one.source)
        if length >= self._row.most:
            raise _too_many(source, length, bad)
        return source.placeholder()


def _too_many(source: Source, length: int, bad: list[BadSample]) -> TooManyBad:
    last = bad[-1]
    reasons = ", ".join(f"{n} {name}" for name, n in by_category(bad).most_common())
    error = TooManyBad(
        str(source.reader.folder),
        f"{length} unreadable samples in a row, the last {last.name} ({last.reason}); in this "
        f"batch {reasons}",
        fix="run `ovtrain data verify` on this folder",
    )
    error.bad = bad
    return error


def samples_by(data: DataConfig, world: World) -> Samples:
    """Samples are made one by one, or whole batches at a time where ``data.decoder`` is dali, on
    this rank's GPU where it has one."""
    if data.decoder != "dali":
        return SamplePool(data)
    from ovtrain.data.decode.dali.samples import DaliSamples

    return DaliSamples(data, world.local_rank if world.device.type == "cuda" else None)
