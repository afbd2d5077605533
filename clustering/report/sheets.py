"""Picture sheets: of some centers, the samples nearest to them, as small JPEGs inside the page.

An image is shown whole; of a clip, ``FRAMES`` frames side by side. A sample that does not decode is
shown as such, with its reason, and counted.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from clustering.report.nearest import Center, rows_of
from clustering.teachers import uniform_indices
from ovtrain.data.decode.base import decode_image
from ovtrain.data.decode.pyav import decode_clip
from ovtrain.data.shards import ShardReader
from ovtrain.observability.report.page import Section, absent
from ovtrain.schema.errors import OvtrainError
from ovtrain.schema.sample import CLIP, IMAGE

TITLE = "Samples of centers"
FRAMES = 4
HEIGHT = {"video": 60, "image": 96, "document": 96}
"""Pixels, on the page."""
WIDEST = 3
"""Times the height."""
FINENESS = 2
"""Stored pixels per pixel of the page, where the sample has as many."""
QUALITY = 60
MOST_BYTES = 6_000_000
"""Of all pictures of a page."""
STYLE = """
.sheet{display:flex;flex-wrap:wrap;gap:8px}
.scroll{margin:8px 0 12px}
.sheet figure{max-width:100%;overflow-wrap:anywhere}
.sheet img{display:block;border-radius:3px;max-width:100%;height:auto;background:var(--wash)}
.sheet figcaption{font-weight:400;font-size:11.5px;margin:2px 0 4px}
.undecoded{display:flex;align-items:center;height:60px;padding:6px;font-size:11px;
line-height:1.25;overflow:hidden;border:1px dashed var(--faint);border-radius:3px;color:#b91c1c}
"""


@dataclass
class Drawn:
    """Where pictures come from, and what was drawn. ``classes``: name by file stem."""

    reader: ShardReader | None
    classes: dict[str, str] = field(default_factory=dict[str, str])
    bytes: int = 0
    undecoded: int = 0
    left_out: int = 0


def without_shards(why: str) -> Section:
    return Section(TITLE, absent(f"No pictures. {why}"))


def section(drawn: Drawn, centers: Sequence[Center]) -> Section:
    """A sheet per center; ``drawn.reader`` is open."""
    assert drawn.reader is not None
    if not centers:
        return Section(TITLE, absent("No centers were asked for."))
    rows = rows_of(drawn.reader.hashes, [key for c in centers for key, _ in c.samples])
    body = "".join(
        f"<h3>{escape(why.capitalize())} clusters</h3>"
        + "".join(_sheet(drawn, center, rows) for center in group)
        for why, group in groupby(centers, key=lambda center: center.why)
    )
    text = (
        '<p class="sub">Of each center the nearest samples, of those that have no nearer center; '
        "below each, its distance. Clips: frames from left to right.</p>"
    )
    if drawn.undecoded:
        text += absent(f"{drawn.undecoded} of the samples could not be decoded.")
    if drawn.left_out:
        most = f"{MOST_BYTES / 1e6:.0f} MB"
        text += absent(f"{drawn.left_out} pictures left out: those of a page take {most} at most.")
    return Section(TITLE, text + body)


def _sheet(drawn: Drawn, center: Center, rows: dict[int, int]) -> str:
    pictures = "".join(
        _figure(drawn, rows[key], distance) for key, distance in center.samples if key in rows
    )
    samples = "sample" if center.size == 1 else "samples"
    return (
        f"<p><b>center {center.id}</b>, {center.size:,} {samples}</p>"
        f'<div class="sheet">{pictures}</div>'
    )


def _figure(drawn: Drawn, row: int, distance: float) -> str:
    assert drawn.reader is not None
    caption, width = f"{distance:.3g}", 150
    if drawn.bytes > MOST_BYTES:
        drawn.left_out += 1
        return ""
    try:
        if drawn.classes:
            stem = Path(drawn.reader.meta(row).media).stem
            caption = f"{drawn.classes.get(stem, 'no class')}, {caption}"
        data, (width, height) = thumbnail(drawn.reader, row)
        name = drawn.reader.name(row)
    except OvtrainError as error:
        drawn.undecoded += 1
        shown = f'<div class="undecoded" title="{escape(str(error))}">does not decode</div>'
    else:
        drawn.bytes += len(data)
        shown = (
            f'<img src="data:image/jpeg;base64,{b64encode(data).decode()}" width="{width}" '
            f'height="{height}" alt="{escape(name)}" title="{escape(name)}">'
        )
    below = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure style="width:{width}px">{shown}{below}</figure>'


def thumbnail(reader: ShardReader, row: int) -> tuple[bytes, tuple[int, int]]:
    """A sample as a JPEG, and its (width, height) on the page. Raises OvtrainError where it does
    not decode."""
    kind, where = reader.manifest.kind, reader.name(row)
    if kind == "video":
        indices = uniform_indices(reader.manifest.frames, FRAMES)
        frames = [*decode_clip(reader.member(row, CLIP), where, indices)]
    else:
        frames = [decode_image(reader.member(row, IMAGE), where)]
    height, width = frames[0].shape[:2]
    shown = min(HEIGHT[kind] / height, WIDEST * HEIGHT[kind] / width)
    shape = _scaled(width, height, min(FINENESS * shown, 1.0))
    small = [Image.fromarray(f).resize(shape, Image.Resampling.BILINEAR) for f in frames]
    out = io.BytesIO()
    strip = np.concatenate([np.asarray(picture) for picture in small], axis=1)
    Image.fromarray(strip).save(out, "JPEG", quality=QUALITY)
    return out.getvalue(), _scaled(width * len(frames), height, shown)


def _scaled(width: int, height: int, scale: float) -> tuple[int, int]:
    return max(1, round(width * scale)), max(1, round(height * scale))
