"""Samples' frames, decoded by threads ahead of a teacher.

Decoders release the GIL, so threads are enough. Samples are handed to the threads in shard order,
so that each tar is read from front to back. What is decoded and not yet taken is bounded: two
batches, or twice as many samples as there are threads.

T frames, H x W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType

from clustering.parts import Indices
from clustering.teachers import Frames, Teacher
from ovtrain.data.decode.base import decode_image
from ovtrain.data.decode.pyav import decode_clip
from ovtrain.data.shards import ShardReader
from ovtrain.schema.errors import MediaError
from ovtrain.schema.sample import CLIP, IMAGE

Decoded = Frames | MediaError
Batch = tuple[Indices, list[Decoded]]


class Decoder:
    """A pool of ``workers`` threads; leaving it drops what was not asked for yet."""

    def __init__(self, reader: ShardReader, teacher: Teacher, workers: int, batch: int) -> None:
        self.reader, self.teacher = reader, teacher
        self.ahead = max(2, -(-2 * workers // batch))
        self.pool = ThreadPoolExecutor(workers)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pool.shutdown(cancel_futures=True)

    def batches(self, cuts: Iterable[Indices]) -> Iterator[Batch]:
        """Each cut with its samples' frames, or what is wrong with a sample; in order."""
        left = iter(cuts)
        waiting = deque(map(self._start, islice(left, self.ahead)))
        while waiting:
            cut, futures = waiting.popleft()
            found = [future.result() for future in futures]
            waiting.extend(map(self._start, islice(left, 1)))
            yield cut, found

    def _start(self, cut: Indices) -> tuple[Indices, list[Future[Decoded]]]:
        return cut, [self.pool.submit(self._decode, i) for i in cut.tolist()]

    def _decode(self, i: int) -> Decoded:
        try:
            return read_frames(self.reader, self.teacher, i)
        except MediaError as error:
            return error


def read_frames(reader: ShardReader, teacher: Teacher, i: int) -> Frames:
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
