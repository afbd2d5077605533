"""Streams that use what x265 can be told to use: recipes by name, and the clip they encode."""

from __future__ import annotations

import numpy as np

from tests.unit.codec.pictures import encode, texture

FILTERLESS = "no-deblock=1:no-sao=1:log-level=error:pools=none:keyint=10:frame-threads=1:"
RECIPES = {
    "ctu 16": "ctu=16:min-cu-size=8:max-tu-size=16",
    "ctu 32": "ctu=32:rect=1:amp=1",
    "ctu 64": "ctu=64:rd=4:tu-inter-depth=4:tu-intra-depth=4",
    "b-pyramid": "bframes=7:b-pyramid=1:b-adapt=0:keyint=24",
    "several references": "ref=5:bframes=2",
    "weighted": "weightp=1:weightb=1:bframes=3:ref=3",
    "wpp": "wpp=1:ctu=16",
    "slices": "slices=3:ctu=16:pools=2:wpp=1",  # x265 crashes on slices without threads
    "tskip": "tskip=1:crf=12",
    "lossless": "lossless=1",
    "cu lossless": "cu-lossless=1:crf=8:rd=5",
    "open gop": "open-gop=1:bframes=3:keyint=6:min-keyint=6",
    "intra refresh": "intra-refresh=1:bframes=0",
    "scaling list": "scaling-list=default",
    "no sign hiding": "signhide=0",
    "constrained intra": "constrained-intra=1",
    "quantization groups": "aq-mode=2:qg-size=8:aq-strength=2",
    "qp 4": "qp=4",
    "qp 48": "qp=48",
    "no tmvp": "temporal-mvp=0",
}
FORMATS = ("yuv420p10", "yuv422p", "yuv444p", "yuv444p12", "gray")


def layers() -> np.ndarray:
    """(14, 136, 200) uint8: two layers that move apart, a fade, noise."""
    rng = np.random.default_rng(0)
    back, front = texture(220, 300, 1), texture(60, 70, 2)
    pictures = []
    for t in range(14):
        picture = back[3 * t // 2 :, 2 * t :][:136, :200].astype(np.float64)
        x, y = 20 + 8 * t, 60 - 3 * t
        picture[y : y + 60, x : x + 70] = front
        picture = picture * (1 - 0.04 * t) + rng.normal(0, 2, picture.shape)
        pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
    return np.stack(pictures)


def x265(
    clip: np.ndarray,
    recipe: str,
    pix_fmt: str = "yuv420p",
    *,
    container: str = "mp4",
    base: str = FILTERLESS,
) -> bytes:
    """A stream of ``clip`` (T, H, W)."""
    options = {"preset": "medium", "x265-params": base + recipe}
    return encode(clip, "libx265", options, pix_fmt=pix_fmt, container=container)
