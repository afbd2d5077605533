"""A copy of live tensors in host memory that is set aside once and used for every save."""

from __future__ import annotations

import torch
from torch import Tensor

from ovtrain.checkpoint.state import Files


class Snapshot:
    """Buffers for one rank's files, pinned where the tensors lie on a GPU."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Tensor] = {}

    def reserve(self, files: Files) -> int:
        """Set the memory aside, touched, so that no save waits for it. Its bytes."""
        for file, tensors in files.items():
            for key, tensor in tensors.items():
                self._buffer(file, key, tensor)
        return sum(buffer.nbytes for buffer in self._held.values())

    def take(self, files: Files) -> Files:
        """The same files with copies; they are valid until the next call."""
        copies: Files = {
            file: {key: self._copy(file, key, tensor) for key, tensor in tensors.items()}
            for file, tensors in files.items()
        }
        if any(tensor.is_cuda for tensors in files.values() for tensor in tensors.values()):
            torch.cuda.synchronize()
        return copies

    def _copy(self, file: str, key: str, tensor: Tensor) -> Tensor:
        return self._buffer(file, key, tensor).copy_(tensor.detach(), non_blocking=True)

    def _buffer(self, file: str, key: str, tensor: Tensor) -> Tensor:
        held = self._held.get((file, key))
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._held[file, key] = held
        return held
