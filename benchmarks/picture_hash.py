"""Perceptual hashes: what they survive and whom they take for one another; not a timing.

    python benchmarks/picture_hash.py [--pictures 400] [--unrelated 8000]

Pictures are generated with the statistics of natural ones: dead leaves (occluding discs and boxes),
fields with a power-law spectrum, landscapes (horizon, sky, objects), pages of text. Each is changed
and hashed again: ``changes`` is the share within each distance of its original (``within``). All
pairs of ``unrelated`` pictures: the share within each distance, and the least distance.
``clips`` are four pictures; each frame changed by JPEG quality 50 and half the size. ``flat``: the
median distance after JPEG quality 50 where a landscape's contrast is scaled to a standard
deviation, the reason for FLAT.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from measure import line
from PIL import Image, ImageDraw

from data_pipelines.dedup import hashing
from data_pipelines.dedup.hashing import CLIP_FRAMES, LUMA, clip_hash, picture_hash

HEIGHT, WIDTH = 240, 320
WITHIN = (4, 6, 8, 10, 12)
DEVIATIONS = (1, 2, 4, 8, 16)

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def field(rng: np.random.Generator, height: int, slope: float) -> Floats:
    """(height, WIDTH) noise whose amplitude falls as frequency ** -slope; mean 0, deviation 1."""
    size = np.hypot(*np.meshgrid(np.fft.fftfreq(WIDTH), np.fft.fftfreq(height)))
    size[0, 0] = np.inf
    noise = np.fft.fft2(rng.standard_normal((height, WIDTH)))
    values = np.fft.ifft2(noise / size**slope).real
    return values / values.std()


def colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(value) for value in rng.integers(0, 256, 3))


def leaves(rng: np.random.Generator) -> Picture:
    image = Image.new("RGB", (WIDTH, HEIGHT), colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(60, 500))):
        radius = 4 / (rng.random() ** 0.6 + 0.015)
        x, y, wide = rng.random() * WIDTH, rng.random() * HEIGHT, radius * rng.uniform(0.5, 2)
        box = (x - wide, y - radius, x + wide, y + radius)
        (draw.ellipse if rng.random() < 0.6 else draw.rectangle)(box, fill=colour(rng))
    return levels(np.asarray(image) + rng.uniform(0, 12) * field(rng, HEIGHT, 1)[..., None])


def power_law(rng: np.random.Generator) -> Picture:
    slope = rng.uniform(0.8, 1.8)
    planes = np.stack([field(rng, HEIGHT, slope) for _ in range(3)], axis=-1)
    return levels(
        rng.uniform(70, 180) + rng.uniform(15, 60) * (0.4 * planes + 0.8 * planes[..., :1])
    )


def landscape(rng: np.random.Generator) -> Picture:
    down = np.linspace(0, 1, HEIGHT)[:, None]
    horizon = rng.uniform(0.3, 0.7) + rng.uniform(0.01, 0.08) * field(rng, 1, 1.2)
    sky = rng.uniform(120, 240) + rng.uniform(-80, 40) * down
    sky = sky + rng.uniform(1, 18) * field(rng, HEIGHT, 1.6)
    ground = rng.uniform(30, 140) + rng.uniform(8, 30) * field(rng, HEIGHT, 1.1)
    luma = np.where(down < horizon, sky, ground)
    image = Image.fromarray(levels(luma[..., None] * rng.uniform(0.7, 1.1, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 8))):
        x, y, high = rng.random() * WIDTH, rng.uniform(0.3, 1) * HEIGHT, rng.uniform(7, 60)
        draw.ellipse((x - high / 2, y - high, x + high / 2, y + high), fill=colour(rng))
    return np.asarray(image)


def page(rng: np.random.Generator) -> Picture:
    image = Image.new("RGB", (WIDTH, HEIGHT), (int(rng.integers(225, 256)),) * 3)
    draw = ImageDraw.Draw(image)
    y = int(rng.integers(5, 30))
    while y < HEIGHT - 10:
        letters = rng.integers(97, 123, int(rng.integers(5, 50)))
        spaced = "".join(" " if rng.random() < 0.17 else chr(letter) for letter in letters)
        draw.text((12, y), spaced, fill=20)
        y += int(rng.integers(11, 14)) + 14 * (rng.random() < 0.12)
    return np.asarray(image)


KINDS = (leaves, power_law, landscape, page)


def draw_picture(seed: int) -> Picture:
    """(HEIGHT, WIDTH, 3) RGB."""
    return KINDS[seed % len(KINDS)](np.random.default_rng(seed))


def levels(values: npt.NDArray[Any]) -> Picture:
    return np.clip(values, 0, 255).astype(np.uint8)


def jpeg(picture: Picture, quality: int = 85) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def resized(picture: Picture, height: float, width: float) -> Picture:
    size = (round(width * WIDTH), round(height * HEIGHT))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def cropped(picture: Picture, share: float, *, corner: bool = False) -> Picture:
    """Without ``share`` of the lines: half of them on each side, or all at the top and left."""
    down, across = round(share * HEIGHT), round(share * WIDTH)
    if corner:
        return picture[down:, across:]
    return picture[down // 2 : HEIGHT - down // 2, across // 2 : WIDTH - across // 2]


def with_logo(picture: Picture) -> Picture:
    changed = picture.copy()
    changed[round(0.85 * HEIGHT) : -6, round(0.8 * WIDTH) : -6] = (240, 240, 30)
    return changed


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "jpeg 95": lambda picture: jpeg(picture, 95),
    "jpeg 50": lambda picture: jpeg(picture, 50),
    "jpeg 30": lambda picture: jpeg(picture, 30),
    "half the size": lambda picture: jpeg(resized(picture, 0.5, 0.5)),
    "twice the size": lambda picture: jpeg(resized(picture, 2, 2)),
    "squeezed to a square": lambda picture: jpeg(resized(picture, 1, HEIGHT / WIDTH)),
    "half the size, jpeg 30": lambda picture: jpeg(resized(picture, 0.5, 0.5), 30),
    "brightness x 0.9": lambda picture: jpeg(levels(0.9 * picture)),
    "brightness x 1.1": lambda picture: jpeg(levels(1.1 * picture)),
    "crop 2 %": lambda picture: jpeg(cropped(picture, 0.02)),
    "crop 2 %, one corner": lambda picture: jpeg(cropped(picture, 0.02, corner=True)),
    "crop 5 %": lambda picture: jpeg(cropped(picture, 0.05)),
    "crop 10 %": lambda picture: jpeg(cropped(picture, 0.10)),
    "logo in a corner": with_logo,
    "mirror": lambda picture: picture[:, ::-1],
}


def luma(picture: Picture) -> Picture:
    return levels(picture @ LUMA)


def clip(seed: int) -> npt.NDArray[np.uint8]:
    """(CLIP_FRAMES, HEIGHT, WIDTH): one picture that slides by 8 pixels a frame."""
    still = luma(draw_picture(seed))
    return np.stack([np.roll(still, 8 * step, axis=1) for step in range(CLIP_FRAMES)])


def distances(words: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    return np.bitwise_count(words ^ others).sum(axis=-1)


def shares(found: npt.NDArray[Any], frames: int = 1) -> dict[str, float]:
    return {str(frames * d): round(float((found <= frames * d).mean()), 4) for d in WITHIN}


def survived(pictures: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[int]] = {name: [] for name in CHANGES}
    for seed in range(pictures):
        picture = draw_picture(seed)
        words = picture_hash(picture).words
        for name, change in CHANGES.items():
            found[name].append(int(distances(words, picture_hash(change(picture)).words)))
    return {name: shares(np.array(values)) for name, values in found.items()}


def unrelated(words: npt.NDArray[np.uint64], frames: int) -> dict[str, Any]:
    """Of all pairs of ``words`` (n, k)."""
    counts = np.zeros(64 * frames + 1, np.int64)
    for i in range(len(words) - 1):
        counts += np.bincount(distances(words[i + 1 :], words[i]), minlength=len(counts))
    pairs = {str(frames * d): int(counts[: frames * d + 1].sum()) for d in WITHIN}
    least = int(np.flatnonzero(counts)[0])
    return {"pairs": int(counts.sum()), "within": pairs, "least_distance": least}


def clips(count: int) -> dict[str, Any]:
    words = np.stack([clip_hash(clip(seed)).words for seed in range(count)])
    changed = []
    for seed in range(0, count, 20):
        frames = [jpeg(resized(frame, 0.5, 0.5), 50) for frame in clip(seed)]
        changed.append(distances(words[seed], clip_hash(np.stack(frames)).words))
    return {
        "changed": shares(np.array(changed), CLIP_FRAMES),
        "unrelated": unrelated(words, CLIP_FRAMES),
    }


def flatness(pictures: int) -> dict[str, float]:
    floor, hashing.FLAT = hashing.FLAT, 0.0
    found = {}
    for deviation in DEVIATIONS:
        apart = []
        for seed in range(2, pictures, len(KINDS)):
            plain = luma(draw_picture(seed)).astype(np.float64)
            flat = levels(60 + (plain - plain.mean()) * deviation / plain.std())
            apart.append(distances(picture_hash(flat).words, picture_hash(jpeg(flat, 50)).words))
        found[str(deviation)] = float(np.median(apart))
    hashing.FLAT = floor
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--unrelated", type=int, default=8000)
    args = parser.parse_args()
    words = np.stack([picture_hash(draw_picture(seed)).words for seed in range(args.unrelated)])
    print(
        line(
            "picture_hash",
            pictures=args.pictures,
            changes=survived(args.pictures),
            unrelated=unrelated(words, 1),
            clips=clips(args.pictures * 5),
            flat=flatness(args.pictures),
        )
    )


if __name__ == "__main__":
    main()
