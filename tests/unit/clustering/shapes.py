"""Tiny moving pictures and the shard folders that hold them."""

import io
import tarfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ovtrain.schema.atomic import file_sha256
from ovtrain.schema.manifest import ShardIndex, ShardInfo, ShardManifest, fingerprint
from ovtrain.schema.sample import MEMBERS, SampleMeta

FRAMES, SIDE = 32, 112


def texture(rng, side=SIDE, cells=14):
    """(side, side) smooth grey texture, 80 to 160."""
    coarse = Image.fromarray(rng.uniform(80, 160, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def moving_square(path, seed=0, *, luma=220.0, pan=(0.0, 0.0), frames=FRAMES):
    """(T, 112, 112, 3) uint8: a textured 30-pixel square whose pose at u in 0 .. 1 is
    ``path(u)`` = (x, y, angle, scale), over a texture that moves by ``pan`` pixels a frame."""
    rng = np.random.default_rng(seed)
    background = texture(rng, 2 * SIDE, 28)
    stripe = rng.uniform(0.4, 0.7)
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    out = []
    for number in range(frames):
        x, y, angle, scale = path(number / (frames - 1))
        u, v = (columns - x) / (15 * scale), (rows - y) / (15 * scale)
        u, v = np.cos(angle) * u + np.sin(angle) * v, np.cos(angle) * v - np.sin(angle) * u
        inside = np.clip((1 - np.maximum(abs(u), abs(v))) * 15 + 0.5, 0, 1)
        square = luma + 25 * np.sin(2 * np.pi * u / stripe / 2) + 15 * np.sign(v)
        picture = _shifted(background, number * pan[0], number * pan[1])
        out.append(picture * (1 - inside) + square * inside)
    grey = np.clip(np.stack(out), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _shifted(picture, dx, dy):
    """The middle window after the texture moved by (dx, dy)."""
    left, top = SIDE // 2 - dx, SIDE // 2 - dy
    x, y = int(np.floor(left)), int(np.floor(top))
    fx, fy = left - x, top - y
    part = picture[y : y + SIDE + 1, x : x + SIDE + 1]
    part = part[:-1] * (1 - fy) + part[1:] * fy
    return part[:, :-1] * (1 - fx) + part[:, 1:] * fx


def travel(dx, dy):
    return lambda u: (56 + dx * (u - 0.5), 56 + dy * (u - 0.5), 0.3, 1.0)


def encode(frames):
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "18"}
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def write_shard(folder: Path, kind: str, payloads: dict[str, bytes], frames=FRAMES, side=SIDE):
    """One tar of ``payloads`` (key -> encoded clip or picture) with its index and manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    tar = folder / f"{kind}-000000.tar"
    frames = frames if kind == "video" else 1
    energy = io.BytesIO()
    np.save(energy, np.zeros((frames, side // 14, side // 14), dtype=np.uint16))
    with tarfile.open(tar, "w") as archive:
        for key, payload in payloads.items():
            name = f"{key}.mp4"
            meta = SampleMeta(key, kind, kind, frames, side, side, 16.0, "pixel-estimate", name)
            parts = {"energy.npy": energy.getvalue(), "json": meta.to_json()}
            for member in MEMBERS[kind]:
                info = tarfile.TarInfo(f"{key}.{member}")
                data = parts.get(member, payload)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    with tarfile.open(tar) as archive:
        found = [archive.getmember(f"{key}.{m}") for key in payloads for m in MEMBERS[kind]]
    shape = (len(payloads), len(MEMBERS[kind]))
    offsets = np.array([m.offset_data for m in found], dtype=np.int64).reshape(shape)
    sizes = np.array([m.size for m in found], dtype=np.int64).reshape(shape)
    ShardIndex(list(payloads), offsets, sizes).write(tar.with_suffix(".npz"))
    info = ShardInfo(tar.name, len(payloads), tar.stat().st_size, file_sha256(tar))
    prints = fingerprint(list(payloads))
    ShardManifest(kind, kind, frames, side, side, 14, prints, (info,)).write(folder)
    return folder
