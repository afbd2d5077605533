"""Cores that loading takes, from rates measured on one.

``benchmarks/results/loader-2-cores.txt``, one core of an AMD EPYC, ``Loader`` with one worker:
23.694 ms for a clip of 64 frames of 224 x 224 (2,048 patches of it chosen), 1.956 ms for a picture
(a 360 x 500 JPEG to 224 x 224). The other views decode the same clip. Pictures of another side are
taken to cost in proportion to the pixels that are shown, which is too much where decoding a small
file dominates.
"""

from __future__ import annotations

CLIPS_PER_S = 1000 / 23.694
PICTURES_PER_S = 1000 / 1.956
MEASURED_SIDE = 224


def per_core(kind: str, size: int, clips_per_s: float = 0.0, pictures_per_s: float = 0.0) -> float:
    """Samples per second and core of a source of ``kind`` shown at ``size`` pixels; rates of 0 are
    the measured ones."""
    area = (size / MEASURED_SIDE) ** 2
    if kind == "video":
        return (clips_per_s or CLIPS_PER_S) / area
    return (pictures_per_s or PICTURES_PER_S) / area
