"""Syntax that no encoder at hand sends: drawn streams, rebuilt from FFmpeg's pixels.

The decoder's own walk through the syntax writes the streams (tests/helpers/hevc_writer), so a walk
that is wrong shows itself when FFmpeg decodes something else.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.helpers.hevc_oracle import Verdict, check
from tests.helpers.hevc_writer.plan import Plan
from tests.helpers.hevc_writer.streams import stream, tile_map
from tests.unit.codec.test_hevc_oracle import pixels_of, signals_of

MOST_FFMPEG_QP = 71
"""FFmpeg scales as if QP' above it were 0 (its table of quotients ends there)."""


def rebuild(plan: Plan, data: bytes) -> Verdict | None:
    """None where FFmpeg is known to get it wrong."""
    frames, pixels = signals_of(data), pixels_of(data)
    if max(int(frame.qp.max()) for frame in frames) + 6 * (plan.depth - 8) > MOST_FFMPEG_QP:
        return None
    tiles = tile_map(plan)
    for frame in frames:
        # To the oracle a tile's border is a slice's: intra prediction stops at both.
        frame.slice_address = frame.slice_address * (tiles.max() + 1) + tiles
    return check(frames, pixels)


def used_by(plan: Plan) -> list[str]:
    """What a plan turns on."""
    flags = ("pcm", "amp", "long_term", "hrd", "sign_hiding", "transform_skip", "lossless")
    more = ("wavefront", "dependent", "lists_modification", "cabac_init", "cross_component")
    found = [name for name in (*flags, *more) if getattr(plan, name)]
    found += [f"extension {name}" for name, on in plan.extension.items() if on]
    found += [f"scaling {plan.scaling}", f"chroma {plan.chroma}", f"depth {plan.depth}"]
    found += ["tiles"] * bool(plan.tiles) + ["parallel merge"] * (plan.merge_level > 2)
    found += ["qp delta"] * (plan.qp_delta_depth is not None)
    found += ["chroma offsets"] * bool(plan.chroma_offsets)
    found += ["large transform skip"] * (plan.log2_transform_skip > 2)
    return found + ["predicted sets"] * plan.predicts_sets


def campaign(seeds: range) -> Counter[str]:
    """How many streams of each feature were rebuilt to the last block."""
    seen: Counter[str] = Counter()
    wrong: dict[int, Verdict] = {}
    for seed in seeds:
        written = stream(seed)
        verdict = written and rebuild(*written)
        if not written or not verdict:
            continue
        if verdict.wrong_inter or verdict.wrong_intra:
            wrong[seed] = verdict
        seen.update(["streams", *used_by(written[0])])
    assert wrong == {}
    return seen


def test_drawn_streams_are_rebuilt():
    seen = campaign(range(90))
    assert seen["streams"] > 50
    rare = ("pcm", "long_term", "lists_modification", "hrd", "tiles", "scaling 2", "predicted sets")
    assert all(seen[name] >= 3 for name in rare), seen


@pytest.mark.full
def test_many_drawn_streams_are_rebuilt():
    seen = campaign(range(1000, 3000))
    assert seen["streams"] > 1200
    assert min(seen.values()) >= 15, seen


def test_a_wrong_walk_would_be_seen():
    """One changed residual or vector in a drawn stream is."""
    plan, data = next(filter(None, map(stream, range(5, 50))))
    frames, pixels = signals_of(data), pixels_of(data)
    assert plan
    last = frames[-1]
    last.residual = last.residual + (np.arange(last.residual.shape[1]) == 9).astype(np.int16)
    verdict = check(frames, pixels)
    assert verdict.wrong_inter + verdict.wrong_intra > 0
