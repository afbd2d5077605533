"""Clips and pictures per second and core, against what else there is to load them with.

    python benchmarks/loader.py [--rounds 7] [--core N]

All of it runs on one core and, but for the loader itself, in one thread; rounds are interleaved and
the fastest of each counts (milliseconds per clip or picture).

Clips: 64 frames of 224 x 224, prepared as ``ovtrain prepare`` does, one of each kind.
  ours             stored energy -> 2,048 patches, in this process; ``loader``: the same through
                   ``Loader`` with one worker, packed; ``on_the_fly``: energy from the bitstream
                   instead of from the shard, told apart as it decodes the clip twice
  decode           PyAV decodes all frames; ``rgb``: and converts them to RGB
  fp32             PyAV, all frames, normalised to float32 (64, 224, 224, 3), in place
  libx264/libx265  what decord's ``get_batch`` does: of a whole 12 s video of 640 x 360, 64 frames
                   spread evenly, resized to 224 x 224 uint8. As decord does it skips to a later key
                   frame where a frame lies behind one, decodes whatever lies between, and converts
                   only what was asked for. Emulated on PyAV, on the same decoders.

Pictures: 360 x 500 JPEGs -> a random part (0.35 to 1 of the area) at 224 x 224, mirrored by half.
  ours             256 patches, in this process; ``loader``: as above; ``ours_dali``: by our DALI
                   pipeline, one thread
  webdataset       the same tar: ``WebDataset(...).decode("pil")``, crop and resize by Pillow
                   (bilinear, in one call), mirror; uint8 array
  dali             DALI's own image pipeline: webdataset reader, random crop decoder, resize,
                   mirror; one thread
"""

from __future__ import annotations

import argparse
import io
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from loader_media import (
    CLIPS,
    FRAMES,
    GRID,
    PICTURES,
    SIDE,
    clip_shards,
    energy_of,
    picture_shards,
    videos,
)
from measure import interleaved, line
from PIL import Image
from webdataset.compat import WebDataset

from ovtrain.config.data import AugmentConfig, DataConfig, SourceConfig, ViewShares
from ovtrain.config.train import RunConfig, TrainConfig
from ovtrain.data import views
from ovtrain.data.clips import Clip
from ovtrain.data.decode.dali import graphs
from ovtrain.data.decode.dali.samples import DaliSamples
from ovtrain.data.loader import Loader
from ovtrain.data.making import Made, Maker, SampleTask
from ovtrain.data.samples import Source
from ovtrain.distributed.context import World

AREA, ASPECT = [0.35, 1.0], [0.75, 4 / 3]
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255
ALONE = World(0, 0, 1, torch.device("cpu"), None)


def data_config(folder: Path, name: str, workers: int = 0) -> DataConfig:
    return DataConfig(
        sources=[SourceConfig(name, str(folder / name))],
        views=ViewShares(1.0, 0.0, 0.0),
        augment=AugmentConfig(flip=0.5, crop_area=AREA, crop_aspect=ASPECT),
        workers=workers,
        prefetch=1,  # nothing is made before it is asked for
    )


def tasks_of(folder: Path, name: str) -> list[SampleTask]:
    source = Source(0, data_config(folder, name).sources[0], data_config(folder, name), 0)
    return [source.task(g) for g in range(len(source.reader))]


def batches(folder: Path, name: str, samples: int) -> Loader:
    config = TrainConfig(
        data=data_config(folder, name, workers=1), run=RunConfig(steps=1, global_batch=samples)
    )
    return Loader(config, ALONE)


def made(maker: Maker, tasks: list[SampleTask]) -> list[Made]:
    return [maker(task) for task in tasks]


def frames(media: bytes) -> Iterator[av.VideoFrame]:
    with av.open(io.BytesIO(media), "r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        yield from container.decode(stream)


def rgb(media: bytes) -> list[np.ndarray]:
    reformatter = VideoReformatter()
    converted = (reformatter.reformat(f, format="rgb24", threads=1) for f in frames(media))
    return [frame.to_ndarray() for frame in converted]


def fp32(media: bytes) -> np.ndarray:
    found = np.stack(rgb(media)).astype(np.float32)
    found -= MEAN
    found *= 1 / STD
    return found


def on_the_fly(media: bytes) -> np.ndarray:
    where = views.codec_view(energy_of(media), GRID, DataConfig().token_budget).where
    return Clip(lambda: media, "clip", GRID).patches(where)


def decord_style(path: Path) -> np.ndarray:
    """(64, 224, 224, 3) uint8."""
    reformatter, found = VideoReformatter(), list[np.ndarray]()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        packets = container.demux(stream)
        index = sorted((p.pts, p.is_keyframe) for p in packets if p.pts is not None)
        at = len(index)  # behind the last frame
        decoded = container.decode(stream)
        for number in np.linspace(0, len(index) - 1, FRAMES).round().astype(int).tolist():
            key = max(i for i, (_, is_key) in enumerate(index[: number + 1]) if is_key)
            if at > number or key > at:
                container.seek(index[key][0], stream=stream)
                decoded = container.decode(stream)
            frame = next(f for f in decoded if f.pts is not None and f.pts >= index[number][0])
            at = number + 1
            found.append(reformatter.reformat(frame, SIDE, SIDE, "rgb24", threads=1).to_ndarray())
    return np.stack(found)


def random_part(sample: dict[str, Any]) -> np.ndarray:
    image: Image.Image = sample["jpg"]
    share = image.width * image.height * random.uniform(*AREA)
    aspect = np.exp(random.uniform(*np.log(ASPECT)))
    width = min(round((share * aspect) ** 0.5), image.width)
    height = min(round((share / aspect) ** 0.5), image.height)
    left = random.randint(0, image.width - width)
    top = random.randint(0, image.height - height)
    box = (left, top, left + width, top + height)
    found = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))
    return found[:, ::-1].copy() if random.random() < 0.5 else found


def webdataset_pictures(folder: Path) -> Iterator[np.ndarray]:
    while True:
        files: Any = WebDataset(str(folder / "image/image-000000.tar"), shardshuffle=False)
        yield from files.decode("pil").map(random_part)


def dali_pictures(folder: Path) -> Any:
    dali = graphs.dali()
    fn, types = dali.fn, dali.types

    @dali.pipeline_def(
        batch_size=PICTURES,
        num_threads=1,
        device_id=None,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
    )
    def pictures() -> Any:
        paths = [str(folder / "image/image-000000.tar")]
        files = fn.readers.webdataset(paths=paths, ext=["jpg"])
        found = fn.decoders.image_random_crop(
            files, random_area=AREA, random_aspect_ratio=ASPECT, output_type=types.RGB
        )
        found = fn.resize(found, size=(SIDE, SIDE), interp_type=types.INTERP_LINEAR)
        return fn.flip(found, horizontal=fn.random.coin_flip())

    pipeline = pictures()
    pipeline.build()
    return pipeline


def clip_variants(folder: Path, loader: Loader) -> dict[str, Callable[[], object]]:
    tasks, maker = tasks_of(folder, "video"), Maker(data_config(folder, "video"))
    media = [maker.media(task) for task in tasks]
    whole = videos(folder)
    return {
        "ours": lambda: made(maker, tasks),
        "loader": lambda: next(loader),
        "on_the_fly": lambda: [on_the_fly(clip) for clip in media],
        "decode": lambda: [sum(1 for _ in frames(clip)) for clip in media],
        "rgb": lambda: [rgb(clip) for clip in media],
        "fp32": lambda: [fp32(clip) for clip in media],
        **{name: lambda path=path: decord_style(path) for name, path in whole.items()},
    }


def picture_variants(
    folder: Path, loader: Loader, samples: DaliSamples
) -> dict[str, Callable[[], object]]:
    tasks, maker = tasks_of(folder, "image"), Maker(data_config(folder, "image"))
    files, pipeline = webdataset_pictures(folder), dali_pictures(folder)
    return {
        "ours": lambda: made(maker, tasks),
        "loader": lambda: next(loader),
        "ours_dali": lambda: [wait() for wait in samples.submit(tasks)],
        "webdataset": lambda: [next(files) for _ in range(PICTURES)],
        "dali": pipeline.run,
    }


def each(
    variants: dict[str, Callable[[], object]], counts: dict[str, int], most: int, rounds: int
) -> dict[str, float]:
    """{variant: milliseconds per sample}; ``counts``: samples of a call where not ``most``."""
    found = interleaved(variants, warm_up=1, rounds=rounds)
    return {n: round(t["min_ms"] / counts.get(n, most), 3) for n, t in found.items()}


def over(times: dict[str, float], *names: str) -> dict[str, float]:
    """How many times faster ours is."""
    return {name: round(times[name] / times["ours"], 2) for name in names}


def bytes_each(loader: Loader) -> int:
    """What one sample puts on the device, labels and all."""
    (micro,) = next(loader).micro
    tensors = [value for value in vars(micro).values() if isinstance(value, torch.Tensor)]
    return round(sum(t.numel() * t.element_size() for t in tensors) / micro.samples)


def measure_clips(folder: Path, rounds: int) -> dict[str, Any]:
    clip_shards(folder / "video")
    loader = batches(folder, "video", len(CLIPS))
    try:
        variants = clip_variants(folder, loader)
        times = each(variants, {"libx264": 1, "libx265": 1}, len(CLIPS), rounds)
        sent = bytes_each(loader)
    finally:
        loader.close()
    fp32_bytes = 4 * FRAMES * SIDE * SIDE * 3
    return {
        "ms": times,
        "per_s": round(1e3 / times["ours"], 1),
        "ours_is_faster_than": over(times, "fp32", "libx264", "libx265", "on_the_fly"),
        "over_decode": round(times["ours"] / times["decode"], 2),
        "bytes": {"ours": sent, "uint8_frames": fp32_bytes // 4, "fp32_frames": fp32_bytes},
    }


def measure_pictures(folder: Path, rounds: int) -> dict[str, Any]:
    picture_shards(folder / "image")
    loader = batches(folder, "image", PICTURES)
    samples = DaliSamples(data_config(folder, "image", workers=1))
    try:
        variants = picture_variants(folder, loader, samples)
        times = each(variants, {}, PICTURES, rounds)
        sent = bytes_each(loader)
    finally:
        loader.close()
        samples.close()
    return {
        "ms": times,
        "per_s": round(1e3 / times["ours"], 1),
        "ours_is_faster_than": over(times, "webdataset", "dali"),
        "bytes": {"ours": sent, "uint8_picture": SIDE * SIDE * 3},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # webdataset's, of its own readers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = measure_clips(folder, args.rounds)
        still = measure_pictures(folder, args.rounds)
    print(line("loader", rounds=args.rounds, core=args.core, clips=clips, pictures=still))


if __name__ == "__main__":
    main()
