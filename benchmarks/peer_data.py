"""Peer of the loader: dense float32 tensors, as the released trainer's pipelines make them.

    behaviour                                                                       from
    all 64 frames of every clip are decoded and turned into RGB                     released trainer
    (B, 3, 64, 224, 224) float32, normalised, whatever the view needs of it         released trainer
    picked patches come as indices made beforehand                                  released trainer
    pictures: a random part of 0.7 to 1 of the area, aspect 0.8 to 1.25, mirrored
    by half; those with text whole and never mirrored; (B, 3, 224, 224) float32     released trainer

Nothing was slowed. Clips here hold the 64 frames that are asked for, at the size that is asked for:
the release reads whole videos, of which most frames are thrown away, and resizes. Tensors are
written where they are used, in memory that is used again: no process, no queue, no copy between
them. PyAV decodes in one thread per clip, as many clips at once as there are workers; pictures are
decoded and resized by Pillow. The release normalises on a GPU, here each frame is while it is still
in the cache. Files are read beforehand.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image
from torch import Tensor

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)[:, None, None]
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)[:, None, None]
SCALE, SHIFT = 1 / (255 * STD), -MEAN / STD
AREA, ASPECT = (0.7, 1.0), (0.8, 1.25)


class DenseBatch(NamedTuple):
    """pictures and documents (B, 3, H, W), clips (B, 3, T, H, W), float32."""

    pictures: Tensor
    documents: Tensor
    clips: Tensor


class DenseLoader:
    """The same samples every time: encoded pictures, documents and clips -> DenseBatch."""

    def __init__(
        self,
        pictures: Sequence[bytes],
        documents: Sequence[bytes],
        clips: Sequence[bytes],
        *,
        side: int,
        frames: int,
        workers: int,
        seed: int = 0,
    ) -> None:
        self.media = pictures, documents, clips
        self.rng = np.random.default_rng(seed)
        self.batch = DenseBatch(
            torch.empty(len(pictures), 3, side, side),
            torch.empty(len(documents), 3, side, side),
            torch.empty(len(clips), 3, frames, side, side),
        )
        self.workers = ThreadPoolExecutor(workers, "dense")

    def __next__(self) -> DenseBatch:
        """Overwrites the batch before."""
        pictures, documents, clips = self.media
        side = self.batch.pictures.shape[-1]
        tasks: list[Callable[[], None]] = []
        for media, out in zip(clips, self.batch.clips.numpy(), strict=True):
            tasks.append(lambda media=media, out=out: clip_into(media, out))
        for media, out in zip(pictures, self.batch.pictures.numpy(), strict=True):
            drawn = self.rng.random(5)
            tasks.append(lambda m=media, o=out, d=drawn: normalise(part_of(m, side, d), o))
        for media, out in zip(documents, self.batch.documents.numpy(), strict=True):
            tasks.append(lambda m=media, o=out: normalise(whole(m, side), o))
        for done in [self.workers.submit(task) for task in tasks]:
            done.result()
        return self.batch

    def close(self) -> None:
        self.workers.shutdown()


def normalise(picture: np.ndarray, out: np.ndarray) -> None:
    """(H, W, 3) uint8 -> ``out`` (3, H, W) float32."""
    np.multiply(picture.transpose(2, 0, 1), SCALE, out=out)
    out += SHIFT


def clip_into(media: bytes, out: np.ndarray) -> None:
    """All frames of a clip -> ``out`` (3, T, H, W) float32."""
    reformatter = VideoReformatter()
    with av.open(io.BytesIO(media), "r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        for t, frame in enumerate(container.decode(stream)):
            rgb = reformatter.reformat(frame, format="rgb24", threads=1)
            plane, shape = rgb.planes[0], (rgb.height, rgb.width, 3)
            strides = (plane.line_size, 3, 1)
            normalise(np.ndarray(shape, np.uint8, memoryview(plane), strides=strides), out[:, t])


def part_of(media: bytes, side: int, drawn: np.ndarray) -> np.ndarray:
    """A part of a picture, by five numbers of [0, 1), at (side, side, 3)."""
    image = Image.open(io.BytesIO(media)).convert("RGB")
    share = image.width * image.height * np.interp(drawn[0], (0, 1), AREA)
    aspect = math.exp(np.interp(drawn[1], (0, 1), np.log(ASPECT)))
    width = min(math.sqrt(share * aspect), image.width)
    height = min(math.sqrt(share / aspect), image.height)
    left, top = drawn[2] * (image.width - width), drawn[3] * (image.height - height)
    found = _resized(image, side, (left, top, left + width, top + height))
    return found[:, ::-1] if drawn[4] < 0.5 else found


def whole(media: bytes, side: int) -> np.ndarray:
    """All of a picture at (side, side, 3)."""
    image = Image.open(io.BytesIO(media)).convert("RGB")
    return _resized(image, side, (0, 0, image.width, image.height))


def _resized(image: Image.Image, side: int, box: tuple[float, float, float, float]) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
