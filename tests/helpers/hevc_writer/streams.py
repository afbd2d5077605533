"""Streams of drawn syntax: the decoder, compiled with an encoder for its arithmetic engine."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from tests.helpers.hevc_writer.headers import records
from tests.helpers.hevc_writer.plan import Plan, draw

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[2] / "ovtrain/codec/native/hevc"
ILLEGAL = 3
"""Exit status of the writer where a draw broke the standard."""


@cache
def program() -> Path:
    """The writer, built once per process."""
    path = Path(mkdtemp()) / "hevc_writer"
    sources = [source for source in sorted(NATIVE.glob("*.cpp")) if source.name != "bindings.cpp"]
    command = [
        "c++",
        "-std=c++17",
        "-O0",
        f"-I{NATIVE}",
        "-include",
        "random",
        "-include",
        "vector",
    ]
    command.append(f'-DOVTRAIN_ENGINE="{HERE / "engine.h"}"')
    command += [str(HERE / "writer.cpp"), *map(str, sources), "-o", str(path)]
    subprocess.run(command, check=True)
    return path


def stream(seed: int) -> tuple[Plan, bytes] | None:
    """An annex B stream and its plan; None where the draw is none."""
    plan = draw(seed)
    asked = b"".join(records(plan))
    done = subprocess.run([str(program())], input=asked, capture_output=True, check=False)
    if done.returncode == ILLEGAL:
        return None
    assert done.returncode == 0, done.stderr
    return plan, done.stdout


def wild(seed: int) -> bytes:
    """A stream whose headers go to the ends of what their syntax can say, and whose slices hold
    noise: for what must merely not break."""
    plan = draw(seed)
    plan.long_term, plan.wild = True, True
    plan.log2_poc_lsb = (4, 16)[seed % 2]
    found = b""
    for record in records(plan):
        unit = record[16:]
        noise = plan.rng.randbytes(40) if unit[0] >> 1 < 32 else b""
        found += b"\0\0\1" + unit + noise
    return found


def tile_map(plan: Plan) -> np.ndarray:
    """(CTBs down, CTBs across) the number of the tile of each."""
    columns, rows = plan.tiles or ([plan.ctbs[1]], [plan.ctbs[0]])
    down = np.repeat(np.arange(len(rows)), rows)
    return down[:, None] * len(columns) + np.repeat(np.arange(len(columns)), columns)
