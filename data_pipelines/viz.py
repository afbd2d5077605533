"""The paper's four-panel page of a clip: what token selection keeps, on one picture.

Panels, each all T frames in reading order: dense frames; the uniformly sampled frames that cost the
same number of tokens; the energy as heat; the codec-selected patches, all others greyed.

Inputs: a folder of video shards. Output: one PNG per clip.
"""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ovtrain.codec.selection import select
from ovtrain.schema.grid import PatchGrid
from ovtrain.schema.manifest import ShardIndex, ShardManifest
from ovtrain.schema.sample import CLIP, ENERGY, MEMBERS, META, SampleMeta

COLUMNS = 8
CELL = 80
GAP, CAPTION = 2, 22
PAPER = 255
FADE = 0.25
"""How much of a patch that is not selected still shows."""

Pictures = npt.NDArray[np.uint8]


def write_panels(shards: Path, out: Path, count: int, budget: int) -> list[str]:
    """Pages of ``count`` clips, spread evenly over the source, at ``budget`` tokens each."""
    manifest = ShardManifest.read(shards)
    count = min(count, manifest.samples)
    names: list[str] = []
    for k in range(count):
        clip, energy, meta = _read_clip(shards, manifest, k * manifest.samples // count)
        page = draw_page(decode_rgb(clip), energy, budget, f"{meta.media} ({meta.origin})")
        out.mkdir(parents=True, exist_ok=True)
        page.save(out / f"{meta.key}.png")
        names.append(f"{meta.key}.png")
    return names


def _read_clip(
    shards: Path, manifest: ShardManifest, sample: int
) -> tuple[bytes, npt.NDArray[np.uint16], SampleMeta]:
    for shard in manifest.shards:
        if sample < shard.samples:
            break
        sample -= shard.samples
    else:
        raise IndexError(sample)
    index = ShardIndex.read((shards / shard.name).with_suffix(".npz"))
    payload: dict[str, bytes] = {}
    with open(shards / shard.name, "rb") as handle:
        for column, name in enumerate(MEMBERS["video"]):
            handle.seek(int(index.offsets[sample, column]))
            payload[name] = handle.read(int(index.sizes[sample, column]))
    energy = np.load(io.BytesIO(payload[ENERGY]), allow_pickle=False)
    meta = SampleMeta.from_json(payload[META], f"{shard.name}/{index.keys[sample]}")
    return payload[CLIP], energy, meta


def decode_rgb(clip: bytes) -> Pictures:
    """(T, H, W, 3) frames of an MP4 in memory."""
    with av.open(io.BytesIO(clip), "r") as container:
        return np.stack([np.asarray(f.to_image()) for f in container.decode(video=0)])


def draw_page(
    frames: Pictures, energy: npt.NDArray[np.uint16], budget: int, title: str
) -> Image.Image:
    """frames (T, H, W, 3), energy (T, H/p, W/p) -> the page."""
    grid = PatchGrid(*energy.shape, patch=frames.shape[1] // energy.shape[1])
    chosen = select(energy, budget)
    mask = np.zeros(grid.size, dtype=bool)
    mask[chosen.flat] = True
    whole = max(budget // grid.tokens_per_frame, 1)
    uniform = np.zeros(energy.shape, dtype=bool)
    uniform[(2 * np.arange(whole) + 1) * grid.frames // (2 * whole)] = True
    panels = {
        f"dense: {grid.frames} frames, {grid.size} patches": frames,
        f"uniform: {whole} frames, {whole * grid.tokens_per_frame} patches": _fade(frames, uniform),
        "energy": _heat(frames, energy),
        f"codec: {budget} patches, {chosen.filled} of them still": _fade(
            frames, mask.reshape(energy.shape)
        ),
    }
    return _compose([(caption, _contact(panel)) for caption, panel in panels.items()], title)


def _spread(patches: npt.NDArray[np.generic], side: int) -> npt.NDArray[np.generic]:
    """Repeat each patch's value over its pixels: (T, h, w) -> (T, h * side, w * side)."""
    return patches.repeat(side, axis=1).repeat(side, axis=2)


def _fade(frames: Pictures, kept: npt.NDArray[np.bool_]) -> Pictures:
    """Patches that are not kept turn grey and pale."""
    grey = frames.mean(axis=-1, keepdims=True) * FADE + PAPER * (1 - FADE) * 0.8
    pixels = _spread(kept, frames.shape[1] // kept.shape[1])[..., None]
    return np.where(pixels, frames, grey.astype(np.uint8))


def _heat(frames: Pictures, energy: npt.NDArray[np.uint16]) -> Pictures:
    """Black - red - yellow - white over the clip's own range, mixed with the picture."""
    level = energy / max(float(energy.max()), 1.0)
    colours = np.clip(np.stack([level * 3, level * 3 - 1, level * 3 - 2], axis=-1), 0, 1) * 255
    side = frames.shape[1] // energy.shape[1]
    heat = colours.repeat(side, axis=1).repeat(side, axis=2)
    return (0.25 * frames.mean(axis=-1, keepdims=True) + 0.75 * heat).astype(np.uint8)


def _contact(frames: Pictures) -> Image.Image:
    """All frames in reading order, COLUMNS across."""
    rows = -(-len(frames) // COLUMNS)
    step = CELL + GAP
    sheet = Image.new("RGB", (COLUMNS * step - GAP, rows * step - GAP), (PAPER,) * 3)
    for index, frame in enumerate(frames):
        small = Image.fromarray(frame).resize((CELL, CELL), Image.Resampling.BOX)
        sheet.paste(small, (index % COLUMNS * step, index // COLUMNS * step))
    return sheet


def _compose(panels: list[tuple[str, Image.Image]], title: str) -> Image.Image:
    """Two by two panels under their captions."""
    margin = 10
    width, height = panels[0][1].size
    page = Image.new(
        "RGB",
        (2 * width + 3 * margin, 2 * (height + CAPTION + margin) + CAPTION),
        (PAPER,) * 3,
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    draw.text((margin, 3), title, fill=(0, 0, 0), font=font)
    for index, (caption, panel) in enumerate(panels):
        x = margin + index % 2 * (width + margin)
        y = CAPTION + index // 2 * (height + CAPTION + margin)
        draw.text((x, y + 2), caption, fill=(60, 60, 60), font=font)
        page.paste(panel, (x, y + CAPTION))
    return page
