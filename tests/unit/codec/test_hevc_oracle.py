"""The HEVC decoder against FFmpeg's pixels: every inter block and intra unit must be rebuilt.

The streams are encoded here by x265 without in-loop filters; real ones join where OVTRAIN_STREAMS
names a folder that holds some (``*_nolf.h265``).
"""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers.hevc_oracle import Signals, Verdict, check
from tests.helpers.hevc_recipes import FORMATS, RECIPES, layers, x265

_native = pytest.importorskip("ovtrain.codec._native")

STREAMS = os.environ.get("OVTRAIN_STREAMS", "")


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return layers()


def signals_of(data: bytes) -> list[Signals]:
    """The decoder's outputs of every frame, in presentation order."""
    found = []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        decoder = _native.HevcDecoder(stream.codec_context.extradata or b"", True, True)
        for number, packet in enumerate(container.demux(stream)):
            if packet.size:
                decoder.push(bytes(packet), number)
            found += _popped(decoder)
        decoder.flush()
        found += _popped(decoder)
    assert decoder.lost_units == 0
    return found


def _popped(decoder) -> list[Signals]:
    found = []
    while (frame := decoder.pop()) is not None:
        assert frame.ok
        found.append(_signals(frame))
    return found


def _signals(frame) -> Signals:
    cells = (-(-frame.height // 4), -(-frame.width // 4))
    made = {
        "motion": np.empty((*cells, 2, 2), np.int16),
        "reference_delta": np.empty((*cells, 2), np.int16),
        "weights": np.empty((*cells, 2, 3), np.int16),
        "residual": np.empty((frame.height, frame.width), np.int16),
        "slice_address": np.empty((frame.ctbs_down, frame.ctbs_across), np.int32),
    }
    for name, out in made.items():
        getattr(frame, name)(out)
    mode, qp, size = np.empty(cells, np.uint8), np.empty(cells, np.int8), np.empty(cells, np.uint8)
    frame.blocks(mode, qp, size)
    intra_mode, transform_size = np.empty(cells, np.uint8), np.empty(cells, np.uint8)
    frame.detail(intra_mode, transform_size)
    delta = made.pop("reference_delta")
    return Signals(
        sequence=frame.sequence,
        poc=frame.poc,
        bit_depth=frame.bit_depth,
        delta=delta,
        mode=mode,
        qp=qp,
        intra_mode=intra_mode,
        transform_size=transform_size,
        ctb_size=frame.ctb_size,
        strong_smoothing=frame.strong_intra_smoothing,
        constrained_intra=frame.constrained_intra_pred,
        **made,
    )


def pixels_of(data: bytes) -> list[np.ndarray]:
    """FFmpeg's luma of every frame."""
    found = []
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(video=0):
            plane = frame.planes[0]
            line = np.frombuffer(memoryview(plane), np.uint8)
            line = line[: frame.height * plane.line_size].reshape(frame.height, -1)
            deep = frame.format.components[0].bits > 8
            found.append((line.view("<u2") if deep else line)[:, : frame.width].copy())
    return found


def verdict_of(data: bytes) -> Verdict:
    verdict = check(signals_of(data), pixels_of(data))
    assert verdict.inter_blocks + verdict.intra_units > 500
    return verdict


@pytest.mark.parametrize("name", RECIPES)
def test_every_block_is_rebuilt(clip: np.ndarray, name: str):
    verdict = verdict_of(x265(clip, RECIPES[name]))
    assert (verdict.wrong_inter, verdict.wrong_intra) == (0, 0)


@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_every_block_is_rebuilt_at_other_depths_and_chroma_formats(clip: np.ndarray, pix_fmt: str):
    verdict = verdict_of(x265(clip, "bframes=2:rect=1", pix_fmt))
    assert (verdict.wrong_inter, verdict.wrong_intra) == (0, 0)


def test_the_weighted_recipe_weights(clip: np.ndarray):
    """Else its blocks would prove nothing of weight tables."""
    weights = np.stack([f.weights for f in signals_of(x265(clip, RECIPES["weighted"]))])
    log2, factor = weights[..., 0], weights[..., 1]
    assert ((log2 >= 0) & (factor != 1 << np.maximum(log2, 0))).sum() > 1000


def test_the_oracle_notices_a_quarter_pixel_on_one_block_in_a_hundred(clip: np.ndarray):
    data = x265(clip, "bframes=2:crf=18")
    frames, rng = signals_of(data), np.random.default_rng(0)
    touched = 0
    for number, frame in enumerate(frames):
        hit = (rng.random(frame.mode.shape) < 0.01) & (frame.delta[..., 0] != 0)
        motion = frame.motion.copy()
        motion[hit, 0, 0] += 1
        frames[number] = replace(frame, motion=motion)
        touched += int(hit.sum())
    verdict = check(frames, pixels_of(data))
    assert touched > 50
    assert touched / 2 < verdict.wrong_inter <= touched
    assert verdict.wrong_intra == 0


def test_the_oracle_notices_one_level_on_one_sample_in_a_thousand(clip: np.ndarray):
    data = x265(clip, "bframes=2:crf=18")
    frames, rng = signals_of(data), np.random.default_rng(0)
    touched = 0
    for number, frame in enumerate(frames):
        change = (rng.random(frame.residual.shape) < 0.001).astype(np.int16)
        frames[number] = replace(frame, residual=frame.residual + change)
        touched += int(change.sum())
    verdict = check(frames, pixels_of(data))
    # Several hits in one unit count once.
    assert touched / 2 < verdict.wrong_inter + verdict.wrong_intra <= touched


@pytest.mark.skipif(not STREAMS, reason="OVTRAIN_STREAMS names no folder of real streams")
def test_every_block_of_the_real_filterless_streams_is_rebuilt():
    paths = sorted(Path(STREAMS).glob("*/*_nolf.h265"))
    assert paths
    wrong = {}
    for path in paths:
        verdict = verdict_of(path.read_bytes())
        if verdict.wrong_inter or verdict.wrong_intra:
            wrong[path.name] = verdict
    assert wrong == {}
