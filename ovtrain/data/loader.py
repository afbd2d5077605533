"""The loader: config -> endless StepBatches, a pure function of (manifests, seed, consumed).

State is one integer per source: samples consumed so far by all ranks together. It survives another
world size and another number of workers. A sample that cannot be read is replaced by a placeholder
without labels, named and counted; a long row of them stops the run.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ovtrain.config.data import DataConfig, mixture_counts
from ovtrain.config.train import TrainConfig
from ovtrain.data.batch import PackedBatch, PackedSample, pack
from ovtrain.data.decode.base import ImageDecoder, PillowImages
from ovtrain.data.order import StepPlan
from ovtrain.data.samples import Source
from ovtrain.distributed.context import World
from ovtrain.schema.errors import CheckpointError, ManifestError, MediaError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read: ``shard.tar/key`` and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class StepBatch:
    """One optimizer step's samples of this rank, one PackedBatch per micro-step.

    bad: samples that could not be read; a placeholder without labels stands in for each.
    slots[k]: most samples that any rank holds in micro-step k, the padded size of its gathers;
    rows[k][s]: (B,) int64 places of source s's samples in what is gathered.
    """

    micro: list[PackedBatch]
    slots: list[int]
    rows: list[list[Tensor]]
    bad: list[BadSample]

    def without_patches(self) -> StepBatch:
        """What names the samples, to be kept while the step's metrics are unread."""
        return replace(self, micro=[micro.without_patches() for micro in self.micro])


class Loader:
    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world = config, world
        data, seed = config.data, config.run.seed
        self.sources = [Source(n, s, data, seed) for n, s in enumerate(data.sources)]
        self._check_patch(config.model.patch)
        counts = mixture_counts(data.sources, config.run.global_batch)
        self.plan = StepPlan.build(counts, world.size, config.run.micro_batch)
        self.consumed = [0] * len(self.sources)
        self._bad: list[BadSample] = []
        self._bad_in_a_row = 0
        self._images = image_decoder(data, world)
        self._clip_pool = ThreadPoolExecutor(data.workers, "clips")
        self._assembler = ThreadPoolExecutor(1, "batches")
        self._ahead: deque[Future[StepBatch]] = deque()
        self._next = 0

    def _check_patch(self, patch: int) -> None:
        for source in self.sources:
            if source.grid.patch != patch:
                raise ManifestError(
                    str(source.reader.folder),
                    f"shards made for patches of {source.grid.patch} pixels",
                    allowed=f"model.patch={patch}",
                    fix="prepare the shards with this patch side or change the config",
                )

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
            self._ahead.append(self._assembler.submit(self._assemble, starts))
            self._next += 1
        batch = self._ahead.popleft().result()
        self._next -= 1
        for s, count in enumerate(self.plan.counts):
            self.consumed[s] += count
        return batch

    def close(self) -> None:
        self._drop_ahead()
        self._assembler.shutdown()
        self._clip_pool.shutdown()
        for source in self.sources:
            source.reader.close()

    def _drop_ahead(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._next = 0

    def _assemble(self, starts: list[int]) -> StepBatch:
        micro_steps = range(self.plan.micro_steps)
        sources = range(len(self.sources))
        micro = [self._micro(starts, k) for k in micro_steps]
        bad, self._bad = self._bad, []
        return StepBatch(
            micro,
            [self.plan.slots(k) for k in micro_steps],
            [
                [torch.from_numpy(self.plan.gathered_rows(s, k)) for s in sources]
                for k in micro_steps
            ],
            bad,
        )

    def _micro(self, starts: list[int], k: int) -> PackedBatch:
        samples: list[PackedSample] = []
        for source, start in zip(self.sources, starts, strict=True):
            places = self.plan.places(source.number, self.world.rank, k)
            samples += self._samples(source, [start + place for place in places])
        return pack(samples or [self.sources[0].placeholder()])

    def _samples(self, source: Source, places: list[int]) -> list[PackedSample]:
        if source.is_video:
            found = list(self._clip_pool.map(lambda g: _video_or_error(source, g), places))
        else:
            found = source.build_images(places, self._images)
        return [self._kept(source, sample) for sample in found]

    def _kept(self, source: Source, sample: PackedSample | MediaError) -> PackedSample:
        if not isinstance(sample, MediaError):
            self._bad_in_a_row = 0
            return sample
        log.warning("skipped %s", sample)
        self._bad.append(BadSample(sample.where, str(sample)))
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= self.config.data.max_bad_in_a_row:
            raise MediaError(
                str(source.reader.folder),
                f"{self._bad_in_a_row} unreadable samples in a row, the last {sample.where}",
                fix="run `ovtrain data verify` on this folder",
            )
        return source.placeholder()


def image_decoder(data: DataConfig, world: World) -> ImageDecoder:
    """The image decoder that ``data.image_decoder`` names, for this rank's device."""
    if data.image_decoder == "dali":
        from ovtrain.data.decode.dali import DaliImages

        device = world.local_rank if world.device.type == "cuda" else None
        return DaliImages(data.size, threads=data.workers, device_id=device)
    return PillowImages(data.size)


def _video_or_error(source: Source, g: int) -> PackedSample | MediaError:
    try:
        return source.build_video(g)
    except MediaError as error:
        return error
