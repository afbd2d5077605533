"""What a rank holds of a tensor under ZeRO-3; the backend itself is held by tests/parity."""

import pytest
import torch

from ovtrain.engine.deepspeed_backend import rank_part


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_the_parts_of_all_ranks_are_the_tensor_and_zeros(size: int):
    value = torch.arange(1.0, 11.0).view(2, 5)
    parts = [rank_part(value, rank, size) for rank in range(size)]
    assert {len(part) for part in parts} == {-(-10 // size)}
    joined = torch.cat(parts)
    assert torch.equal(joined[:10], value.flatten())
    assert not joined[10:].any()
