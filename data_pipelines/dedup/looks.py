"""Samples that look alike: hashes while samples are made, duplicates among all of them after.

Clips are compared with clips, images with images, documents with documents; the first of those that
look alike, in the order of the plan, stays.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import av
import numpy as np

from data_pipelines.dedup.duplicates import find_duplicates
from data_pipelines.dedup.hashing import CLIP_FRAMES, PerceptualHash, clip_hash, picture_hash
from data_pipelines.inventory.probe import video_stream
from data_pipelines.journal import Row
from ovtrain.codec.pictures import decode_image
from ovtrain.schema.sample import KINDS, Kind


def look(kind: Kind, payload: bytes, frames: int) -> list[int]:
    """A sample's hash as its row keeps it: the words, then 1 where they say something of it.
    Raises MediaError."""
    found = _clip(payload, frames) if kind == "video" else picture_hash(decode_image(payload, kind))
    return [*found.words.tolist(), int(found.informative)]


def _clip(payload: bytes, frames: int) -> PerceptualHash:
    wanted = {(2 * i + 1) * frames // (2 * CLIP_FRAMES) for i in range(CLIP_FRAMES)}
    with av.open(io.BytesIO(payload), "r") as container:
        decoded = enumerate(container.decode(video_stream(container, "clip")))
        kept = [frame.to_ndarray()[: frame.height] for n, frame in decoded if n in wanted]
    return clip_hash(np.stack(kept).astype(np.uint8, copy=False))


def alike(rows: Iterable[Row], distance: int) -> dict[Kind, dict[str, str]]:
    """Key -> the key that stands for it, of each kind's samples that look like an earlier one.
    ``rows``: of samples; ``distance``: in bits of 64. Raises DuplicateError."""
    keys: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
    hashes: dict[Kind, list[list[int]]] = {kind: [] for kind in KINDS}
    for sample in (sample for row in rows for sample in row.get("samples", ())):
        keys[sample["kind"]].append(sample["key"])
        hashes[sample["kind"]].append(sample["hash"])
    return {kind: _alike(keys[kind], hashes[kind], distance) for kind in KINDS if keys[kind]}


def _alike(keys: list[str], hashes: list[list[int]], distance: int) -> dict[str, str]:
    table = np.array(hashes, np.uint64)
    words, informative = np.ascontiguousarray(table[:, :-1]), table[:, -1] != 0
    labels = find_duplicates(None, words, informative, distance * words.shape[1])
    found = np.flatnonzero(labels != np.arange(len(labels)))
    return {keys[i]: keys[labels[i]] for i in found.tolist()}
