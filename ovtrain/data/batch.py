"""PackedBatch: the one thing an encoder ever sees, a bag of patches with (t, h, w) positions.

Shape legend: N tokens, B samples, L labels, p patch side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """Samples of any mixture of views, concatenated.

    patches       (N, 3*p*p) uint8, channel-major (c, y, x) inside a patch.
    positions     (N, 3) int32 (t, h, w); t on the virtual 64-frame grid.
    cu_seqlens    (B+1,) int32, sample i owns rows cu_seqlens[i]:cu_seqlens[i+1].
    labels        (L,) int32 positive class ids.
    label_offsets (B+1,) int32; a sample may own none.
    source        (B,) int32 index into the config's sources.
    view          (B,) int32 index into ``ovtrain.data.views.VIEWS``.
    key           (B,) int64 bit pattern of the 64-bit sample-key hash.
    group_id      (N,) int32 or None: attention stays inside equal ids of one sample.
    filled        (B,) int32 tokens that codec selection had to fill with still patches.
    longest       tokens of the longest sample, on the host: asking a device would wait for it.
    """

    patches: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    labels: Tensor
    label_offsets: Tensor
    source: Tensor
    view: Tensor
    key: Tensor
    filled: Tensor
    group_id: Tensor | None = None
    longest: int = 0

    @property
    def samples(self) -> int:
        return len(self.source)

    @property
    def tokens(self) -> int:
        return len(self.patches)

    @property
    def max_seqlen(self) -> int:
        return self.longest or int(self.cu_seqlens.diff().max())

    def padded_labels(self, width: int) -> Tensor:
        """(B, width) int32 labels, -1 where a sample owns fewer."""
        counts = self.label_offsets.diff()
        out = self.labels.new_full((self.samples, width), -1)
        row = torch.repeat_interleave(torch.arange(self.samples, device=counts.device), counts)
        column = torch.arange(len(self.labels), device=counts.device) - self.label_offsets[row]
        out[row, column] = self.labels
        return out

    def to(self, device: torch.device) -> PackedBatch:
        """Every tensor on ``device`` (asynchronously where it is pinned)."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved, longest=self.max_seqlen)

    def without_patches(self) -> PackedBatch:
        """The samples' names and labels, without what fills memory."""
        empty = self.patches.new_empty((0, self.patches.shape[1]))
        nowhere = self.positions.new_empty((0, 3))
        return replace(self, patches=empty, positions=nowhere, group_id=None)


@dataclass(frozen=True)
class PackedSample:
    """One sample before packing: patches (n, 3*p*p) uint8, positions (n, 3), labels (l,)."""

    patches: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    source: int
    view: int
    key: int
    filled: int = 0


def pack(samples: list[PackedSample]) -> PackedBatch:
    """Concatenate samples; sequence order is list order."""

    def offsets(lengths: list[int]) -> Tensor:
        return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))

    def column(name: str, dtype: type[np.generic]) -> Tensor:
        return torch.from_numpy(np.array([getattr(s, name) for s in samples], dtype=dtype))

    return PackedBatch(
        patches=torch.from_numpy(np.concatenate([s.patches for s in samples])),
        positions=torch.from_numpy(np.concatenate([s.positions for s in samples]).astype(np.int32)),
        cu_seqlens=offsets([len(s.patches) for s in samples]),
        labels=torch.from_numpy(np.concatenate([s.labels for s in samples]).astype(np.int32)),
        label_offsets=offsets([len(s.labels) for s in samples]),
        source=column("source", np.int32),
        view=column("view", np.int32),
        key=column("key", np.int64),
        filled=column("filled", np.int32),
    )


def unpack(batch: PackedBatch) -> list[PackedSample]:
    """What ``pack`` was given; ``group_id`` is none of a sample's."""
    rows, owned = batch.cu_seqlens.tolist(), batch.label_offsets.tolist()
    columns = zip(
        *(x.tolist() for x in (batch.source, batch.view, batch.key, batch.filled)), strict=True
    )
    return [
        PackedSample(
            batch.patches[rows[i] : rows[i + 1]].numpy(),
            batch.positions[rows[i] : rows[i + 1]].numpy(),
            batch.labels[owned[i] : owned[i + 1]].numpy(),
            *numbers,
        )
        for i, numbers in enumerate(columns)
    ]
