"""What ``loader.py`` reads: clips with stored energies, pictures, and whole videos.

Textures that move everywhere (``codec.RECIPES``): harder to decode than most film, so that ratios
to decoding are not flattered. Clips are encoded with the paper's settings, videos with the default
settings of x264 and x265 (a key frame every 250 frames).
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from codec import RECIPES, ZOOM, Recipe, encode, noise, pictures
from PIL import Image

from ovtrain.codec import open_signals
from ovtrain.codec.energy import measure_clip
from ovtrain.config.prepare import EnergyConfig
from ovtrain.schema.atomic import file_sha256
from ovtrain.schema.grid import PatchGrid
from ovtrain.schema.manifest import ShardIndex, ShardInfo, ShardManifest, fingerprint
from ovtrain.schema.sample import MEMBERS, Kind, SampleMeta

SIDE, FRAMES = 224, 64
GRID = PatchGrid.from_pixels(FRAMES, SIDE, SIDE)
CLIPS = {
    "calm": Recipe((noise(3, 0.5, 3, 0.4),)),
    **{name: RECIPES[name] for name in ("light", "heavy", "zoom", "test card and zoom")},
}
PICTURES, PICTURE_SIDES = 64, (360, 500)
VIDEO_SIDES, VIDEO_FRAMES = (360, 640), 360
X264 = {"preset": "medium", "crf": "23"}
X265 = {"preset": "medium", "x265-params": "pools=none:wpp=0:frame-threads=1:log-level=error"}


def energy_of(clip: bytes) -> np.ndarray:
    """(T, H, W) uint16, as preparation stores it."""
    with open_signals(clip) as source:
        return measure_clip(source, GRID, EnergyConfig()).map


def clip_shards(folder: Path) -> None:
    """One clip of each kind of ``CLIPS``."""
    samples: list[list[bytes]] = []
    for name, recipe in CLIPS.items():
        clip, energy = encode(recipe), io.BytesIO()
        np.save(energy, energy_of(clip))
        samples.append([clip, energy.getvalue(), _meta("video", name, SIDE, SIDE)])
    _write(folder, "video", samples, (FRAMES, SIDE, SIDE))


def picture_shards(folder: Path) -> None:
    """JPEGs of 360 x 500, quality 90, as the web has them."""
    recipe = Recipe((noise(6, 0.6, 6, 1), ZOOM), PICTURE_SIDES, PICTURES)
    samples: list[list[bytes]] = []
    for number, frame in enumerate(pictures(recipe)):
        file = io.BytesIO()
        Image.fromarray(frame.to_ndarray(format="rgb24")).save(file, "JPEG", quality=90)
        samples.append([file.getvalue(), _meta("image", f"{number:04d}", *PICTURE_SIDES)])
    _write(folder, "image", samples, (1, *PICTURE_SIDES))


def videos(folder: Path) -> dict[str, Path]:
    """12 seconds of 640 x 360 in each codec."""
    found = {}
    for encoder, options in (("libx264", X264), ("libx265", X265)):
        recipe = Recipe((noise(4, 0.5, 4, 0.6), ZOOM), VIDEO_SIDES, VIDEO_FRAMES, options)
        found[encoder] = folder / f"{encoder}.mp4"
        found[encoder].write_bytes(encode(recipe, encoder))
    return found


def _meta(kind: Kind, key: str, height: int, width: int) -> bytes:
    frames = FRAMES if kind == "video" else 1
    return SampleMeta(key, kind, kind, frames, height, width, 30.0, "", key).to_json()


def _write(
    folder: Path, kind: Kind, samples: list[list[bytes]], shape: tuple[int, int, int]
) -> None:
    folder.mkdir()
    tar, keys = folder / f"{kind}-000000.tar", [f"sample-{i:04d}" for i in range(len(samples))]
    with tarfile.open(tar, "w") as archive:
        for key, payloads in zip(keys, samples, strict=True):
            for member, payload in zip(MEMBERS[kind], payloads, strict=True):
                info = tarfile.TarInfo(f"{key}.{member}")
                info.size = len(payload)
                archive.addfile(info, io.BytesIO(payload))
    with tarfile.open(tar) as archive:
        places = [(info.offset_data, info.size) for info in archive.getmembers()]
    lies = np.array(places, np.int64).reshape(len(keys), -1, 2)
    ShardIndex(keys, lies[..., 0], lies[..., 1]).write(tar.with_suffix(".npz"))
    shard = ShardInfo(tar.name, len(keys), tar.stat().st_size, file_sha256(tar))
    patch = GRID.patch
    ShardManifest(kind, kind, *shape, patch, fingerprint(keys), (shard,)).write(folder)
