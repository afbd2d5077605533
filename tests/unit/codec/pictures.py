"""Pictures whose motion is known, and videos made of them."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W) uint8 smooth texture without repeats."""
    steps = np.random.default_rng(seed).normal(size=(2, height, width))
    wave = np.cumsum(steps[0], axis=0) + np.cumsum(steps[1], axis=1)
    low, high = wave.min(), wave.max()
    return ((wave - low) / (high - low) * 220 + 16).astype(np.uint8)


def moving_square(frames: int, side: int = 112, step: tuple[int, int] = (3, 2)) -> np.ndarray:
    """(T, side, side): a 40-pixel textured square over a still one, moved by (x, y) per frame."""
    background, square = texture(side, side, 1), texture(40, 40, 2)
    clip = np.repeat(background[None], frames, axis=0)
    for t in range(frames):
        x, y = 16 + t * step[0], 24 + t * step[1]
        clip[t, y : y + 40, x : x + 40] = square
    return clip


def pan(frames: int, side: int = 112, step: tuple[int, int] = (2, 1)) -> np.ndarray:
    """(T, side, side): a window that moves by (x, y) per frame over a wide texture."""
    wide = texture(side + frames * step[1], side + frames * step[0])
    return np.stack([wide[t * step[1] :, t * step[0] :][:side, :side] for t in range(frames)])


def encode(
    luma: np.ndarray,
    codec: str,
    options: dict[str, str],
    *,
    pix_fmt: str = "yuv420p",
    container: str = "mp4",
) -> bytes:
    """(T, H, W) uint8 luma with grey chroma -> a file's bytes."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = *luma.shape[1:], pix_fmt
        stream.options = options
        for picture in luma:
            frame = av.VideoFrame.from_ndarray(np.repeat(picture[..., None], 3, 2), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pict_type = 0
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()
