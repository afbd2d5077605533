"""A step's samples made by DALI's pipelines, whole batches at a time.

Pictures, and on a GPU clips, are decoded by DALI in this process: what a decoder refuses costs its
sample, but what kills or hangs one there takes the run with it. On the CPU clips are gathered by
the loader's workers, as they are without DALI, which may die; these alone use clips' cache files.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ovtrain.config.data import DataConfig
from ovtrain.data.augment import Augmentation
from ovtrain.data.clock import Clock
from ovtrain.data.decode.base import picture_size
from ovtrain.data.decode.dali import graphs
from ovtrain.data.decode.dali.graphs import Feed, Pipeline, Shape
from ovtrain.data.making import Draw, Gathered, Gatherer, Made, Maker, SampleTask
from ovtrain.data.pixels import Pixels
from ovtrain.data.pool import BAD_SAMPLE, Answer, SamplePool
from ovtrain.schema.isolated import Failure, reason_of

BATCH = 64
"""Most samples of one run of a pipeline."""


class _Ready(NamedTuple):
    """A sample without its final patches, and what its pipeline takes."""

    made: Made
    feed: Feed


class DaliSamples:
    """As ``pool.SamplePool``; ``device_id``: the GPU that decodes, or None for the CPU."""

    def __init__(self, data: DataConfig, device_id: int | None = None) -> None:
        graphs.dali()  # said now where it is missing
        self._data, self._device_id = data, device_id
        self._maker = Maker(data)
        self._workers = SamplePool(data, Gatherer(data)) if device_id is None else None
        self._pipelines: dict[tuple[str, Shape], Pipeline] = {}
        self._gathered: list[Pixels] = []
        self._thread = ThreadPoolExecutor(1, "dali")

    def submit(self, tasks: Sequence[SampleTask]) -> list[Callable[[], Answer]]:
        if self._workers is not None and tasks and tasks[0].kind == "video":
            gathered = self._workers.submit(tasks)
            together = self._thread.submit(self._finish, tasks, gathered)
        else:
            together = self._thread.submit(self._decode, tasks)
        return [lambda at=at: together.result()[at] for at in range(len(tasks))]

    def close(self) -> None:
        if self._workers is not None:
            self._workers.close()
        self._thread.shutdown(cancel_futures=True)

    def _finish(
        self, tasks: Sequence[SampleTask], gathered: list[Callable[[], Answer]]
    ) -> list[Answer]:
        """Clips whose patches come from the workers."""
        found = [wait() for wait in gathered]
        self._gathered = [each.patches for each in found if isinstance(each, Gathered)]
        numbers = itertools.count()
        ready = [
            each if isinstance(each, Failure) else _gathered(each, next(numbers)) for each in found
        ]
        return self._run("gathered", tasks, ready)

    def _decode(self, tasks: Sequence[SampleTask]) -> list[Answer]:
        """Samples whose media DALI decodes."""
        kind = "clip" if tasks and tasks[0].kind == "video" else "picture"
        return self._run(kind, tasks, [self._ready(task) for task in tasks])

    def _ready(self, task: SampleTask) -> _Ready | Failure:
        clock = Clock()
        try:
            draw = self._maker.draw(task, clock)
            with clock("read"):
                media = self._maker.media(task)
            part = {} if task.kind == "video" else _part(task, draw, media)
        except BAD_SAMPLE as error:
            return Failure(reason_of(error))
        nothing = np.empty((0, 0), np.uint8)
        made = Made(nothing, draw.plan.positions, draw.plan.filled, clock.seconds)
        feed = {"media": np.frombuffer(media, np.uint8), **part, **_places(task, draw)}
        return _Ready(made, feed | _changes(draw.mirrored, draw.look))

    def _run(
        self, kind: str, tasks: Sequence[SampleTask], ready: Sequence[_Ready | Failure]
    ) -> list[Answer]:
        good = [sample for sample in ready if isinstance(sample, _Ready)]
        began = time.perf_counter()
        patches: list[Pixels | Failure] = []
        for first in range(0, len(good), BATCH):
            feeds = [sample.feed for sample in good[first : first + BATCH]]
            patches += self._patches(kind, tasks[0], feeds)
        each = (time.perf_counter() - began) / max(len(good), 1)
        made = (_made(*both, each) for both in zip(good, patches, strict=True))
        return [next(made) if isinstance(sample, _Ready) else sample for sample in ready]

    def _patches(self, kind: str, task: SampleTask, feeds: list[Feed]) -> list[Pixels | Failure]:
        """A batch fails as a whole: its halves are tried until the samples at fault are alone."""
        shape = Shape.of(self._data, task.stored)
        if (kind, shape) not in self._pipelines:
            self._pipelines[kind, shape] = self._pipeline(kind, shape)
        try:
            return list(self._pipelines[kind, shape](feeds))
        except RuntimeError as error:
            del self._pipelines[kind, shape]
            if len(feeds) == 1:
                return [Failure(f"does not decode ({_essence(error)})")]
        half = len(feeds) // 2
        return self._patches(kind, task, feeds[:half]) + self._patches(kind, task, feeds[half:])

    def _pipeline(self, kind: str, shape: Shape) -> Pipeline:
        if kind == "gathered":
            graph = graphs.gathered_clip_graph(shape, self._take)
        elif kind == "clip":
            graph = graphs.clip_graph(shape, "mixed")
        else:
            graph = graphs.picture_graph(shape, self._device_id)
        threads = max(self._data.workers, 1)
        return Pipeline(graph, batch=BATCH, threads=threads, device_id=self._device_id)

    def _take(self, numbers: Sequence[int]) -> list[Pixels]:
        return [self._gathered[int(number)] for number in numbers]


def _gathered(sample: Made, number: int) -> _Ready:
    assert isinstance(sample, Gathered)
    return _Ready(sample, {"number": _one(number)} | _changes(sample.mirrored, sample.look))


def _one(number: int) -> npt.NDArray[np.int32]:
    return np.array(number, np.int32)


def _part(task: SampleTask, draw: Draw, media: bytes) -> Feed:
    box = draw.box(task, *picture_size(media, task.where))
    return {
        "top_left": np.array([box.top, box.left], np.float32),
        "bottom_right": np.array([box.top + box.height, box.left + box.width], np.float32),
    }


def _places(task: SampleTask, draw: Draw) -> Feed:
    """The frames to decode, and the patches to take of them."""
    grid, (t, h, w) = task.stored, draw.plan.where.T
    frames, nth = np.unique(t, return_inverse=True)
    dy, dx = draw.look.offset
    return {
        "frames": frames.astype(np.int32),
        "order": ((nth * grid.height + h) * grid.width + w).astype(np.int32),
        "offset": np.array([[1, 0, -dx], [0, 1, -dy]], np.float32),
    }


def _changes(mirrored: bool, look: Augmentation) -> Feed:
    colours = look.colours
    matrix = np.eye(3, 4) if colours is None else colours
    return {
        "mirrored": _one(mirrored),
        "linear": matrix[:, :3].astype(np.float32),
        "shift": matrix[:, 3].astype(np.float32),
    }


def _made(sample: _Ready, patches: Pixels | Failure, seconds: float) -> Answer:
    if isinstance(patches, Failure):
        return patches
    made = sample.made
    spent = made.seconds | {"decode": made.seconds["decode"] + seconds}
    return Made(patches, made.positions, made.filled, spent)


def _essence(error: RuntimeError) -> str:
    """DALI's message without its tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    at = next((i for i, line in enumerate(lines) if line.startswith("Error when")), 0)
    return lines[min(at + 1, len(lines) - 1)] if lines else "no reason given"
