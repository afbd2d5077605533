"""Tiny shard folders with labels, written through the real contracts."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ovtrain.schema.atomic import file_sha256
from ovtrain.schema.labels import LabelStore
from ovtrain.schema.manifest import ShardIndex, ShardInfo, ShardManifest, fingerprint
from ovtrain.schema.sample import MEMBERS, Kind, SampleMeta


def hevc(frames: np.ndarray) -> bytes:
    """(T, H, W, 3) uint8 -> an mp4 with one HEVC stream."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx265", rate=16)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "x265-params": "log-level=error:pools=1:bframes=0"}
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def jpeg(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=95)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def geometry(kind: Kind, frames: int, size: int, patch: int = 14) -> ShardManifest:
    """What the samples of a source are, without any."""
    return ShardManifest(kind, kind, frames, size, size, patch, "", ())


def write_shards(
    folder: Path,
    kind: str,
    samples: int,
    *,
    frames: int = 8,
    size: int = 28,
    patch: int = 14,
    shards: int = 2,
    seed: int = 0,
) -> ShardManifest:
    """``samples`` random samples of ``kind`` in ``folder``."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    infos: list[ShardInfo] = []
    every: list[str] = []
    for number, rows in enumerate(np.array_split(np.arange(samples), shards)):
        keys = [f"{kind}-{seed}-{i:04d}" for i in rows]
        tar = folder / f"{kind}-{number:06d}.tar"
        places = [
            _write_sample(
                tar_path=tar, key=k, kind=kind, rng=rng, frames=frames, size=size, patch=patch
            )
            for k in keys
        ]
        _close_tar(tar, places)
        offsets, sizes = _index(tar, keys, kind)
        ShardIndex(keys, offsets, sizes).write(tar.with_suffix(".npz"))
        infos.append(ShardInfo(tar.name, len(keys), tar.stat().st_size, file_sha256(tar)))
        every += keys
    manifest = ShardManifest(
        kind,
        kind,
        frames if kind == "video" else 1,
        size,
        size,
        patch,
        fingerprint(every),
        tuple(infos),
    )
    manifest.write(folder)
    return manifest


def _write_sample(*, tar_path, key, kind, rng, frames, size, patch) -> list[tuple[str, bytes]]:
    meta = SampleMeta(key, kind, kind, frames, size, size, 16.0, "pixel-estimate", f"{key}.mp4")
    if kind != "video":
        picture = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
        payloads = [jpeg(picture), meta.to_json()]
    else:
        clip = np.repeat(rng.integers(0, 255, (frames, 2, 2, 3), dtype=np.uint8), size // 2, 1)
        clip = np.repeat(clip, size // 2, 2)
        energy = rng.integers(0, 65535, (frames, size // patch, size // patch)).astype(np.uint16)
        payloads = [hevc(clip), npy(energy), meta.to_json()]
    return [(f"{key}.{ext}", data) for ext, data in zip(MEMBERS[kind], payloads, strict=True)]


def _close_tar(tar: Path, samples: list[list[tuple[str, bytes]]]) -> None:
    with tarfile.open(tar, "w") as archive:
        for name, data in (member for sample in samples for member in sample):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _index(tar: Path, keys: list[str], kind: str) -> tuple[np.ndarray, np.ndarray]:
    with tarfile.open(tar) as archive:
        members = {m.name: m for m in archive.getmembers()}
    rows = [[members[f"{key}.{ext}"] for ext in MEMBERS[kind]] for key in keys]
    offsets = np.array([[m.offset_data for m in row] for row in rows], dtype=np.int64)
    sizes = np.array([[m.size for m in row] for row in rows], dtype=np.int64)
    return offsets, sizes


def write_labels(
    folder: Path,
    manifest: ShardManifest,
    keys: list[str],
    classes: int,
    top: int = 3,
    seed: int = 0,
) -> LabelStore:
    """Random distinct labels for every key."""
    rng = np.random.default_rng(seed)
    labels = [rng.permutation(classes)[:top].astype(np.int32) for _ in keys]
    store = LabelStore.build(keys, labels, classes, manifest.fingerprint)
    store.write(folder)
    return store
