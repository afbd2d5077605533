"""One shard sample: its key, its tar members, their dtypes and units.

A video sample is ``{key}.mp4`` (HEVC, 64 consecutive frames), ``{key}.energy.npy`` (the energy per
patch, uint16 (T, H, W), 65,535 = 1.0, see ``ovtrain.codec.energy``) and ``{key}.json``
(``SampleMeta``). An image is ``{key}.jpg`` and ``{key}.json``; so is a document, a picture whose
labels are the words on it. Labels and class names are never inside a shard.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ovtrain.schema.errors import ManifestError

Kind = Literal["video", "image", "document"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CLIP, IMAGE, ENERGY, META = "mp4", "jpg", "energy.npy", "json"
MEMBERS: dict[str, tuple[str, ...]] = {
    "video": (CLIP, ENERGY, META),
    "image": (IMAGE, META),
    "document": (IMAGE, META),
}


@dataclass(frozen=True)
class SampleMeta:
    """Travels beside the payload. ``key`` has no dot (WebDataset splits names at the first)."""

    key: str
    kind: Kind
    source: str
    frames: int
    height: int
    width: int
    fps: float
    origin: str
    """Rung of the codec-signal ladder that made the energy; "" for images."""
    media: str
    """File name the sample was cut from (no directory: shards travel)."""
    start: int = 0
    """First frame of the clip in ``media``."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, raw: bytes, where: str) -> SampleMeta:
        """Parse a ``.json`` member; ``where`` names it in errors. Raises ManifestError."""
        try:
            value: dict[str, Any] = json.loads(raw)
            return cls(**value)
        except (ValueError, TypeError) as error:
            known = ", ".join(f.name for f in fields(cls))
            raise ManifestError(where, f"not sample metadata ({error})", allowed=known) from error


def key_hash(keys: list[str]) -> npt.NDArray[np.uint64]:
    """(S,) 64-bit hashes of sample keys, the join column of every store."""
    raw = b"".join(blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)
