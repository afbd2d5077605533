"""Whether the clips and pictures of shards decode, in processes that may die."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
from av.error import FFmpegError

from data_pipelines.inventory.probe import video_stream
from data_pipelines.progress import Progress
from data_pipelines.workers import Failure, Workers
from ovtrain.codec.decoded import STRICT
from ovtrain.codec.pictures import decode_image
from ovtrain.schema.errors import MediaError
from ovtrain.schema.manifest import ShardIndex, ShardManifest
from ovtrain.schema.sample import CLIP, IMAGE, MEMBERS

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class _Media:
    """A clip or picture to decode: ``where`` it lies."""

    name: str
    path: str
    offset: int
    size: int
    frames: int
    picture: bool


def media_faults(folder: Path, manifest: ShardManifest, workers: int) -> Iterator[tuple[str, str]]:
    """(shard.tar/key, why it does not decode) of all clips or pictures that do not."""
    tasks = list(_media(folder, manifest))
    with (
        Workers(_decode, workers, TIMEOUT_S) as pool,
        Progress("decode", len(tasks), "samples") as progress,
    ):
        for index, answer in pool.run(tasks):
            progress.advance()
            if isinstance(answer, Failure):
                yield tasks[index].name, answer.reason


def _media(folder: Path, manifest: ShardManifest) -> Iterator[_Media]:
    name = CLIP if manifest.kind == "video" else IMAGE
    column = MEMBERS[manifest.kind].index(name)
    for shard in manifest.shards:
        path = folder / shard.name
        index = ShardIndex.read(path.with_suffix(".npz"))
        for row, key in enumerate(index.keys):
            where = int(index.offsets[row, column]), int(index.sizes[row, column])
            picture = manifest.kind != "video"
            yield _Media(f"{shard.name}/{key}", str(path), *where, manifest.frames, picture)


def _decode(media: _Media) -> None:
    """Raises MediaError."""
    with open(media.path, "rb") as handle:
        handle.seek(media.offset)
        payload = handle.read(media.size)
    if media.picture:
        decode_image(payload, media.name)
        return
    try:
        with av.open(io.BytesIO(payload), "r") as container:
            stream = video_stream(container, media.name)
            stream.codec_context.options = STRICT
            frames = [frame.is_corrupt for frame in container.decode(stream)]
    except FFmpegError as error:
        raise MediaError(media.name, f"does not decode ({error})") from error
    if any(frames):
        raise MediaError(media.name, f"does not decode (frame {frames.index(True)} is damaged)")
    if len(frames) < media.frames:
        raise MediaError(media.name, f"too few frames ({len(frames)} of {media.frames})")
