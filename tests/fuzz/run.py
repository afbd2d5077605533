"""The fuzzing campaign of the HEVC decoder, under AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m tests.fuzz.run [--inputs 20000] [--streams FOLDER] [--out FILE]

Streams are made here, by x265 (every recipe and pixel format of the tests, with and without in-loop
filters) and by the writer of drawn syntax; ``--streams`` adds a folder of others. ``hevc_fuzz.cpp``
damages them: flipped bits, cuts, flipped bits in headers, headers of other streams, units lost,
exchanged, or repeated hundreds of times. What must not happen: a finding of a sanitizer, an
exception that is not promised, an input that takes a minute, more than 2.5 GiB held by one decoder.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.helpers.hevc_recipes import FORMATS, RECIPES, layers, x265
from tests.helpers.hevc_writer.streams import stream, wild

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "ovtrain/codec/native/hevc"
FLAGS = "-std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined"
FILTERED = "log-level=error:pools=none:keyint=10:frame-threads=1:"
BATCH = 500
MOST_STREAM_BYTES = 40_000


class Finding(AssertionError):
    """What a run of the program died of."""


@dataclass
class Tally:
    """Sums over runs; seconds and bytes are the most of any input."""

    inputs: int = 0
    pictures: int = 0
    damaged: int = 0
    unsupported: int = 0
    seconds: float = 0.0
    bytes: int = 0

    def add(self, line: str) -> None:
        inputs, pictures, damaged, unsupported, seconds, most = line.split()
        self.inputs += int(inputs)
        self.pictures += int(pictures)
        self.damaged += int(damaged)
        self.unsupported += int(unsupported)
        self.seconds = max(self.seconds, float(seconds))
        self.bytes = max(self.bytes, int(most))


def build(folder: Path) -> Path:
    """The instrumented program."""
    program = folder / "hevc_fuzz"
    sources = [path for path in sorted(NATIVE.glob("*.cpp")) if path.name != "bindings.cpp"]
    command = ["c++", *FLAGS.split(), f"-I{NATIVE}", str(HERE / "hevc_fuzz.cpp")]
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
    return program


def write_streams(folder: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Annex B files to damage: of the named recipes and some drawn ones, or of all there are."""
    clip = layers()
    made: dict[str, bytes] = {}
    for name in names or RECIPES:
        base = {"base": FILTERED} if len(made) % 2 else {}
        made[name] = x265(clip, RECIPES[name] + ":info=0", container="hevc", **base)
    for seed in range(8 if names else 40):  # syntax that x265 never sends
        if written := stream(seed):
            made[f"drawn {seed}"] = written[1]
    for seed in range(3 if names else 12):  # headers with values up to their syntax's ends
        made[f"wild {seed}"] = wild(seed)
    for pix_fmt in () if names else FORMATS:
        made[pix_fmt] = x265(clip, "bframes=2:info=0", pix_fmt, container="hevc", base=FILTERED)
    if not names:  # the largest pictures there may be, for the bound on memory
        large = np.full((6, 4320, 8192), 90, np.uint8)
        made["large"] = x265(large, "bframes=3:info=0:ctu=64", container="hevc", base=FILTERED)
    paths = [folder / f"{name.replace(' ', '-')}.h265" for name in made]
    for path, data in zip(paths, made.values(), strict=True):
        path.write_bytes(data)
    return paths


def campaign(program: Path, streams: Sequence[Path], inputs: int, first_seed: int = 1) -> Tally:
    """``inputs`` damaged inputs on all cores. Raises Finding."""
    sizes = [min(BATCH, inputs - done) for done in range(0, inputs, BATCH)]
    tally = Tally()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(partial(_run, program, streams), enumerate(sizes, first_seed))
        for line in runs:
            tally.add(line)
            print(f"{tally.inputs} of {inputs} inputs", flush=True)
    return tally


def _run(program: Path, streams: Sequence[Path], job: tuple[int, int]) -> str:
    seed, count = job
    command = [str(program), str(seed), str(count), *map(str, streams)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Finding(f"seed {seed}: {done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--streams", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        streams = write_streams(Path(folder))
        encoded = len(streams)
        if args.streams:
            streams += [
                p for p in sorted(args.streams.glob("*/*")) if p.suffix in (".h265", ".hevc")
            ]
        try:
            tally = campaign(build(Path(folder)), streams, args.inputs)
        except Finding as found:
            sys.exit(f"error: {found}")
    compiler = subprocess.check_output(["c++", "--version"], text=True).splitlines()[0]
    given = " --streams FOLDER" if args.streams else ""
    seconds = time.monotonic() - began
    text = f"""HEVC decoder, damaged inputs under the sanitizers
command      python -m tests.fuzz.run --inputs {args.inputs}{given}
built with   {compiler}, {FLAGS}
hardware     {platform.machine()}, {os.cpu_count()} cores, {seconds:.0f} s in all
streams      {encoded} encoded by x265 or drawn, {len(streams) - encoded} others
inputs       {tally.inputs}: a sixth each of bit flips, cuts, header flips, spliced headers, units
             lost and exchanged, a unit repeated up to 400 times; streams are cut at 40,000 bytes
             first. In a seventh the first half is skimmed, an eleventh comes as one packet, too
frames       {tally.pictures} came out, {tally.damaged} of them marked damaged
refused      {tally.unsupported} inputs as a tool or size that the decoder leaves out
memory       at most {tally.bytes / 2**20:.0f} MiB held by one decoder (allowed: 2,560)
time         at most {tally.seconds:.2f} s for one input (allowed: 60)
found        nothing: no memory error, no undefined behaviour, no leak, no hang, no other exception
"""
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
