"""Does the loader leak? Continuous loading of clips and pictures, some of them damaged.

    python benchmarks/loader_soak.py --minutes 20

Shards are made first: 64-frame clips of 224 x 224, pictures of 400 x 300. Each ``--every`` seconds
the resident memory of this process and its workers is summed (not PSS: that changes with what other
programs of the machine map). After ``--warm-up`` seconds, of the medians of ten equal parts of the
time: ``start_mib`` and ``end_mib``; ``drift`` = end / start - 1; ``deviation``, the largest from
their median, as a share; ``slope_mib_per_hour`` of the line through all readings. Exit status 1
where drift or deviation exceed 2 %, or files or processes are left.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from measure import line
from PIL import Image

from data_pipelines.shards.writer import write_source
from ovtrain.config.data import DataConfig, SourceConfig
from ovtrain.config.model import ModelConfig
from ovtrain.config.train import RunConfig, TrainConfig
from ovtrain.data.faults import by_category
from ovtrain.data.loader import Loader
from ovtrain.distributed.context import World
from ovtrain.schema.manifest import ShardManifest
from ovtrain.schema.sample import Kind

FRAMES, SIZE, PATCH = 64, 224, 14
DIFFERENT = 12
"""Clips that are encoded; more samples repeat them."""
ALLOWED = 0.02
PARTS = 10


def clip(rng: np.random.Generator) -> bytes:
    """Blocks that move, in HEVC."""
    coarse = rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)
    wide = coarse.repeat(8, 0).repeat(8, 1)
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx265", rate=16)
        stream.height = stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "x265-params": "log-level=error:pools=none"}
        for t in range(FRAMES):
            shown = np.ascontiguousarray(wide[t : t + SIZE, 2 * t : 2 * t + SIZE])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, "rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def picture(rng: np.random.Generator) -> bytes:
    out = io.BytesIO()
    coarse = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
    coarse.resize((400, 300)).save(out, "JPEG")
    return out.getvalue()


def harmed(data: bytes, number: int, rng: np.random.Generator) -> bytes:
    """One in ten is cut, one in ten has flipped bits."""
    if number % 10 == 3:
        return data[: int(rng.integers(len(data)))]
    if number % 10 == 7:
        out = bytearray(data)
        for at in rng.integers(len(data), size=8).tolist():
            out[at] ^= 1 << int(rng.integers(8))
        return bytes(out)
    return data


def write(folder: Path, samples: int) -> None:
    rng = np.random.default_rng(0)
    clips = [clip(rng) for _ in range(DIFFERENT)]
    energy = io.BytesIO()
    np.save(energy, rng.integers(0, 65535, (FRAMES, 16, 16)).astype(np.uint16))
    about = {"json": b"{}"}
    payloads: dict[Kind, Iterator[dict[str, bytes]]] = {
        "video": (
            {"mp4": harmed(clips[n % DIFFERENT], n, rng), "energy.npy": energy.getvalue(), **about}
            for n in range(samples)
        ),
        "image": ({"jpg": harmed(picture(rng), n, rng), **about} for n in range(samples)),
    }
    for kind, members in payloads.items():
        frames = FRAMES if kind == "video" else 1
        like = ShardManifest(kind, kind, frames, SIZE, SIZE, PATCH, "", ())
        named = ((f"{kind}-{n}", one) for n, one in enumerate(members))
        write_source(folder / kind, like, named, 32)


def config_of(folder: Path, workers: int) -> TrainConfig:
    sources = [SourceConfig(kind, shards=str(folder / kind)) for kind in ("video", "image")]
    data = DataConfig(sources, workers=workers, max_bad_in_a_row=1000)
    run = RunConfig(global_batch=8, out=str(folder / "run"))
    return TrainConfig(model=ModelConfig(patch=PATCH), data=data, run=run)


def family() -> list[int]:
    """This process and its children."""
    tasks = Path("/proc/self/task").glob("*/children")
    return [os.getpid(), *(int(pid) for path in tasks for pid in path.read_text().split())]


def held_mib() -> float:
    pages = 0
    for pid in family():
        with suppress(OSError):  # it ended meanwhile
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def files_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def soak(loader: Loader, minutes: float, warm_up: float, every: float) -> dict[str, Any]:
    times, held, samples = list[float](), list[float](), 0
    reasons: Counter[str] = Counter()
    began = read = time.monotonic()
    while (now := time.monotonic()) < began + warm_up + 60 * minutes:
        batch = next(loader)
        samples += sum(micro.samples for micro in batch.micro)
        reasons += by_category(batch.bad)
        if now > began + warm_up and now > read + every:
            read = now
            times.append(now)
            held.append(held_mib())
    medians = np.array([np.median(part) for part in np.array_split(held, PARTS)])
    apart = np.abs(medians / np.median(medians) - 1)
    return {
        "minutes": round((time.monotonic() - began) / 60, 2),
        "samples": samples,
        "bad": dict(reasons),
        "readings": len(held),
        "start_mib": round(float(medians[0]), 1),
        "end_mib": round(float(medians[-1]), 1),
        "drift": round(float(medians[-1] / medians[0] - 1), 4),
        "deviation": round(float(apart.max()), 4),
        "slope_mib_per_hour": round(float(np.polyfit(times, held, 1)[0]) * 3600, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=60.0, help="seconds")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between readings")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=256, help="of each source")
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # a line for each damaged sample
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.samples)
        before = files_open()
        loader = Loader(
            config_of(Path(folder), given.workers), World(0, 0, 1, torch.device("cpu"), None)
        )
        try:
            found = soak(loader, given.minutes, given.warm_up, given.every)
        finally:
            loader.close()
        found["files_left_open"] = files_open() - before
        found["processes_left"] = len(family()) - 1
    print(line("loader_soak", workers=given.workers, **found))
    flat = max(abs(found["drift"]), found["deviation"]) <= ALLOWED
    return 0 if flat and found["files_left_open"] <= 0 and not found["processes_left"] else 1


if __name__ == "__main__":
    sys.exit(main())
