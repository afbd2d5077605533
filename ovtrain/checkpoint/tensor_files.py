"""safetensors files as checkpoints need them: written once, hashed on the way, read by parts.

The library's own writer copies each tensor into Python bytes while it holds the interpreter, which
would stop the training loop for as long as a snapshot is written beside it. This one hands the
tensors' own memory to the file and the hash in blocks, during which other threads run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ovtrain.schema.errors import CheckpointError

BLOCK = 8 << 20
DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write one file and flush it to disk; {"bytes", "sha256"} of it. Raises OSError."""
    flat = {name: _bytes_of(tensor) for name, tensor in tensors.items()}
    digest, size = sha256(), 0
    with open(path, "wb", buffering=0) as handle:
        for piece in (_header(tensors), *flat.values()):
            for start in range(0, len(piece), BLOCK):
                block = piece[start : start + BLOCK]
                digest.update(block)
                _write_all(handle.fileno(), block)
                size += len(block)
        os.fsync(handle.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's own memory, if it lies on the host in one piece."""
    whole = tensor.detach().cpu().contiguous().reshape(-1)
    raw: Any = whole.view(torch.uint8).numpy()
    return memoryview(raw) if len(whole) else memoryview(b"")


def _header(tensors: Mapping[str, Tensor]) -> memoryview:
    """Length, then where each tensor lies (the format's documentation)."""
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(len(text).to_bytes(8, "little") + text)


def _write_all(descriptor: int, block: memoryview) -> None:
    while block:
        block = block[os.write(descriptor, block) :]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises CheckpointError where the file is damaged."""
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(str(path), f"unreadable ({error})") from error


class TensorFile:
    """An open file, read tensor by tensor or a part of one. Raises CheckpointError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(str(path), "pt")
            self.lengths: dict[str, int] = {}
            """Entries of each tensor's first dimension."""
            for name in self._file.keys():  # noqa: SIM118 (no mapping)
                self.lengths[name] = int(self._file.get_slice(name).get_shape()[0])
        except (OSError, SafetensorError, IndexError) as error:
            raise CheckpointError(str(path), f"unreadable ({error})") from error

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor."""
        try:
            return self._file.get_slice(name)[start:stop]
        except (OSError, SafetensorError, IndexError) as error:
            raise CheckpointError(str(self.path), f"unreadable ({error})") from error
