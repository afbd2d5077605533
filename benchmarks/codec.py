"""Exact HEVC signals against FFmpeg's decode of the same clips, and two threads against one.

    python benchmarks/codec.py [--rounds 9] [FILE ...]

Both sides read the clip from memory through its container, in one thread: ``ffmpeg`` decodes every
frame (PyAV, thread_type NONE, no pixel conversion), ``residual`` and ``motion`` iterate
``open_signals`` with and without the residual, into arrays that are reused. Rounds are interleaved
and the fastest of each counts; ``over_ffmpeg`` is how many times faster ours is. Clips are made by
libavfilter and x265 as RECIPES say; FILEs are measured beside them. ``two_at_once``: how many clips
two threads, and two processes, decode in the time that one needs for one.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from measure import interleaved, line

from ovtrain.codec import Want, open_signals
from ovtrain.codec.transcode import HevcSettings

RATE = 30
FILM = {
    "preset": "medium",
    "crf": "22",
    "x265-params": "keyint=250:pools=none:wpp=0:frame-threads=1:log-level=error",
}
"""x265's own defaults: B-pyramid, three references, open GOP."""


@dataclass(frozen=True)
class Recipe:
    """Sources of libavfilter, averaged where there are several, and how they are encoded."""

    sources: tuple[str, ...]
    side: tuple[int, int] = (224, 224)
    frames: int = 64
    options: dict[str, str] | None = None


def noise(octaves: int, persistence: float, scale: float, speed: float) -> str:
    """Flowing fractal noise: texture that moves and changes everywhere, like smoke or water."""
    return (
        f"perlin=octaves={octaves}:persistence={persistence}:xscale={scale}:yscale={scale}:"
        f"tscale={speed}:random_mode=seed:random_seed=1"
    )


ZOOM = "mandelbrot=end_pts=3200:end_scale=0.3"
GRAIN = ",noise=alls=5:allf=t:all_seed=1"
RECIPES = {
    "light": Recipe((noise(6, 0.6, 6, 1.5),)),
    "heavy": Recipe((noise(6, 0.72, 6, 1.5),)),
    "zoom": Recipe((ZOOM,)),
    "test card and zoom": Recipe(("testsrc2", ZOOM + GRAIN)),
    "1080p zoom": Recipe((ZOOM,), (1080, 1920), 32, FILM),
    "1080p noise": Recipe((noise(7, 0.6, 8, 1),), (1080, 1920), 32, FILM),
}
"""light and heavy: the paper's transcode at about 10 and 16 kbit a frame."""


def pictures(recipe: Recipe) -> Iterator[VideoFrame]:
    """The recipe's frames in yuv420p."""
    graph, last = Graph(), None
    for source in recipe.sources:
        made = None
        for step in source.split(","):
            name, _, options = step.partition("=")
            if made is None:
                size = f"size={recipe.side[1]}x{recipe.side[0]}:rate={RATE}"
                options = f"{size}:{options}".rstrip(":")
            node = graph.add(name, options)
            if made is not None:
                made.link_to(node)
            made = node
        assert made is not None
        node = graph.add("format", "pix_fmts=yuv420p")
        made.link_to(node)
        if last is not None:
            blend = graph.add("blend", "all_mode=average")
            last.link_to(blend, 0, 0)
            node.link_to(blend, 0, 1)
            node = blend
        last = node
    assert last is not None
    sink = graph.add("buffersink")
    last.link_to(sink)
    graph.configure()
    for _ in range(recipe.frames):
        frame = graph.pull()
        assert isinstance(frame, VideoFrame)
        yield frame


def encode(recipe: Recipe, encoder: str = "libx265") -> bytes:
    """The recipe as an MP4."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        options = recipe.options or HevcSettings().options()
        stream = output.add_stream(encoder, rate=RATE, options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = recipe.side
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(pictures(recipe)):
            frame.pict_type = PictureType.NONE
            frame.pts = number
            frame.time_base = Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def ffmpeg(data: bytes) -> int:
    """Frames that FFmpeg decodes."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def signals(data: bytes, *, residual: bool) -> int:
    """Frames whose signals are read, all into the same arrays."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def allocate(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        return arrays.setdefault(name, np.empty(shape, dtype))

    asked = Want(residual=residual)
    with open_signals(data, origin="hevc-bitstream", want=asked, allocate=allocate) as source:
        return sum(1 for _ in source)


def measure(data: bytes, rounds: int) -> dict[str, Any]:
    """Times and ratios of one clip."""
    variants: dict[str, Callable[[], object]] = {
        "ffmpeg": lambda: ffmpeg(data),
        "residual": lambda: signals(data, residual=True),
        "motion": lambda: signals(data, residual=False),
    }
    counts = {name: run() for name, run in variants.items()}
    assert len(set(counts.values())) == 1, counts
    frames = int(str(counts["ffmpeg"]))
    found = interleaved(variants, warm_up=1, rounds=rounds)
    fastest = {name: times["min_ms"] for name, times in found.items()}
    return {
        "kbit_per_frame": round(8e-3 * len(data) / frames, 1),
        "frames": frames,
        "min_ms": fastest,
        "over_ffmpeg": {
            name: round(fastest["ffmpeg"] / fastest[name], 2) for name in ("residual", "motion")
        },
    }


def decode_clips(data: bytes) -> None:
    """What one worker does at a time."""
    for _ in range(4):
        signals(data, residual=True)


def two_at_once(data: bytes, rounds: int) -> dict[str, dict[str, Any]]:
    """Throughput of two workers over that of one: by the fastest round of each, and in quartiles of
    pairs of rounds that follow one another. Processes are the control: they share nothing, and show
    what the machine gives its cores at a time."""
    took: dict[str, list[tuple[float, float]]] = {"threads": [], "processes": []}
    with ProcessPoolExecutor(2) as processes, ThreadPoolExecutor(2) as threads:
        list(processes.map(decode_clips, [data] * 4))
        for _ in range(4 * rounds):
            for name, pool in (("threads", threads), ("processes", processes)):
                start = time.perf_counter()
                list(pool.map(decode_clips, [data]))
                middle = time.perf_counter()
                list(pool.map(decode_clips, [data] * 2))
                took[name].append((middle - start, time.perf_counter() - middle))
    found = {}
    for name, times in took.items():
        one, two = np.array(times).T
        quartiles = np.percentile(2 * one / two, [25, 50, 75])
        fastest = 2 * one.min() / two.min()
        found[name] = {"fastest": round(fastest, 2), "quartiles": quartiles.round(2).tolist()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    clips = {name: encode(recipe) for name, recipe in RECIPES.items()}
    clips |= {path.name: path.read_bytes() for path in args.files}
    print(
        line(
            "codec",
            ffmpeg=f"{av.ffmpeg_version_info}, PyAV {av.__version__}",
            rounds=args.rounds,
            clips={name: measure(data, args.rounds) for name, data in clips.items()},
            two_at_once={
                name: two_at_once(clips[name], args.rounds)
                for name in ("light", "heavy", "1080p noise")
            },
        )
    )


if __name__ == "__main__":
    main()
