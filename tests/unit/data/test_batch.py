"""Packing keeps order, types and every sample's own rows."""

import numpy as np
import torch

from ovtrain.data.batch import PackedBatch, PackedSample, pack


def sample(n: int, labels: list[int], source: int = 0) -> PackedSample:
    patches = np.full((n, 12), n, np.uint8)
    positions = np.arange(3 * n, dtype=np.int64).reshape(n, 3)
    return PackedSample(patches, positions, np.array(labels, np.int32), source, 1, -7 - n, n % 2)


def packed() -> PackedBatch:
    return pack([sample(3, [5, 6]), sample(1, []), sample(4, [9], source=1)])


def test_offsets_delimit_each_sample():
    batch = packed()
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 8]
    assert batch.label_offsets.tolist() == [0, 2, 2, 3]
    assert (batch.samples, batch.tokens, batch.max_seqlen) == (3, 8, 4)
    assert batch.patches[:, 0].tolist() == [3, 3, 3, 1, 4, 4, 4, 4]


def test_columns_have_the_stated_types():
    batch = packed()
    assert batch.patches.dtype == torch.uint8
    assert batch.key.dtype == torch.int64
    assert batch.key.tolist() == [-10, -8, -11]
    for name in ("positions", "cu_seqlens", "labels", "label_offsets", "source", "view", "filled"):
        assert getattr(batch, name).dtype == torch.int32, name
    assert batch.group_id is None


def test_labels_are_padded_with_minus_one():
    assert packed().padded_labels(3).tolist() == [[5, 6, -1], [-1, -1, -1], [9, -1, -1]]


def test_moving_keeps_everything():
    batch = packed()
    moved = batch.to(torch.device("cpu"))
    assert all(
        torch.equal(value, getattr(moved, name))
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor)
    )


def test_the_group_column_moves_too():
    batch = PackedBatch(**(vars(packed()) | {"group_id": torch.zeros(8)}))
    assert batch.to(torch.device("cpu")).group_id is not None
