"""What ``step.py`` reads: clips with stored energies, pictures, documents, and their labels.

Clips and pictures are ``loader_media``'s kinds, repeated as often as a batch needs; each source has
as many samples as a step takes, so that every step of either side sees all of them once.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from codec import ZOOM, Recipe, encode, noise, pictures
from loader_media import CLIPS, FRAMES, GRID, PICTURE_SIDES, SIDE, energy_of
from PIL import Image
from torch import Tensor

from data_pipelines.shards.writer import write_source
from ovtrain.codec.selection import select
from ovtrain.schema.labels import LabelStore
from ovtrain.schema.manifest import ShardManifest
from ovtrain.schema.sample import CLIP, ENERGY, IMAGE, META, Kind, SampleMeta

LABELS: dict[Kind, int] = {"image": 10, "document": 100, "video": 10}
"""Positives of each sample, as the paper and the release have them."""
SHARD = 256


@dataclass(frozen=True)
class Media:
    """The media of a step: files in shard order, labels (B, l) int64, and of every clip the flat
    places (B, n) that its energy picks. ``folder`` holds {kind}/ and {kind}-labels/."""

    folder: Path
    files: dict[Kind, list[bytes]]
    labels: dict[Kind, Tensor]
    visible: Tensor


def make(folder: Path, counts: dict[Kind, int], classes: int, budget: int) -> Media:
    """Shards and labels of so many samples of each kind, below ``folder``."""
    made = [encode(recipe) for recipe in CLIPS.values()]
    energies = [energy_of(clip) for clip in made]
    stills = _stills(counts["image"] + counts["document"])
    files: dict[Kind, list[bytes]] = {
        "image": stills[: counts["image"]],
        "document": stills[counts["image"] :],
        "video": list(islice(cycle(made), counts["video"])),
    }
    rng = np.random.default_rng(0)
    labels: dict[Kind, Tensor] = {}
    for kind, payloads in files.items():
        members = [{CLIP if kind == "video" else IMAGE: payload} for payload in payloads]
        if kind == "video":
            for member, energy in zip(members, cycle(energies), strict=False):
                member[ENERGY] = _npy(energy)
        labels[kind] = _write(folder, kind, members, classes, rng)
    picked = [torch.from_numpy(select(energy, budget).flat) for energy in energies]
    visible = torch.stack(list(islice(cycle(picked), counts["video"])))
    return Media(folder, files, labels, visible.long())


def _stills(count: int) -> list[bytes]:
    """JPEGs of 360 x 500, quality 90."""
    found = []
    for frame in pictures(Recipe((noise(6, 0.6, 6, 1), ZOOM), PICTURE_SIDES, count)):
        file = io.BytesIO()
        Image.fromarray(frame.to_ndarray(format="rgb24")).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _write(
    folder: Path,
    kind: Kind,
    members: Sequence[dict[str, bytes]],
    classes: int,
    rng: np.random.Generator,
) -> Tensor:
    """The shards and the LabelStore of a source; its labels (B, l)."""
    frames, (height, width) = (FRAMES, (SIDE, SIDE)) if kind == "video" else (1, PICTURE_SIDES)
    keys = [f"{kind}-{i:04d}" for i in range(len(members))]
    for key, member in zip(keys, members, strict=True):
        meta = SampleMeta(key, kind, kind, frames, height, width, 30.0, "", key)
        member[META] = meta.to_json()
    like = ShardManifest(kind, kind, frames, height, width, GRID.patch, "", ())
    written = write_source(folder / kind, like, zip(keys, members, strict=True), SHARD)
    drawn = [rng.choice(classes, LABELS[kind], replace=False).astype(np.int32) for _ in keys]
    store = LabelStore.build(keys, drawn, classes, written.fingerprint)
    store.write(folder / f"{kind}-labels")
    return torch.from_numpy(np.stack(drawn)).long()
