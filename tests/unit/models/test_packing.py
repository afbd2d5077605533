"""What the encoder refuses, and in which words; how a bag is put in order."""

import pytest
import torch
from torch import Tensor

from ovtrain.config.model import ModelConfig
from ovtrain.models.encoder import build_encoder
from ovtrain.models.packing import arrange, attended_pairs
from ovtrain.ops.varlen_attention import Sequences


def good() -> dict[str, Tensor | int | None]:
    return {
        "patches": torch.zeros(6, 588),
        "positions": torch.zeros(6, 3, dtype=torch.int32),
        "cu_seqlens": torch.tensor([0, 2, 6], dtype=torch.int32),
        "max_seqlen": 4,
        "group_id": None,
    }


def at(axis: int, value: float) -> Tensor:
    positions = torch.zeros(6, 3)
    positions[4, axis] = value
    return positions


def cu(*bounds: int) -> Tensor:
    return torch.tensor(bounds, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patches": torch.zeros(6, 600)}, r"patches: shape \(6, 600\); allowed: \(6, 588\)"),
        ({"patches": torch.zeros(6, 588).int()}, "patches: are torch.int32; allowed: uint8"),
        ({"positions": torch.zeros(5, 3)}, r"positions: shape \(5, 3\); allowed: \(6, 3\)"),
        ({"positions": at(0, 64)}, "positions: t=64 in row 4; allowed: 0 to 63; put the frames"),
        ({"positions": at(0, -1)}, "positions: t=-1 in row 4; allowed: 0 to 63"),
        ({"positions": at(1, -2)}, "positions: h=-2 in row 4; allowed: 0 or more"),
        ({"positions": at(2, float("nan"))}, "positions: w=nan in row 4"),
        ({"cu_seqlens": cu(0, 2, 5)}, "cu_seqlens: ends at 5; allowed: 6, the number of tokens"),
        ({"cu_seqlens": cu(0, 2, 7), "max_seqlen": 5}, "cu_seqlens: ends at 7; allowed: 6"),
        ({"cu_seqlens": cu(1, 2, 6)}, "cu_seqlens: starts at 1; allowed: 0"),
        ({"cu_seqlens": cu(0, 2, 2, 6)}, r"sample 1 has 0 tokens \(rows 2 to 2\); allowed: rising"),
        ({"cu_seqlens": cu(0, 4, 2, 6)}, r"sample 1 has -2 tokens"),
        ({"cu_seqlens": cu(0)}, "cu_seqlens: .*at least one sample"),
        ({"cu_seqlens": torch.tensor([0.0, 6.0])}, "cu_seqlens: .*torch.float32; allowed: .*int32"),
        ({"max_seqlen": 3}, "max_seqlen: 3, but a sample has 4 tokens; allowed: 4 or more"),
        ({"group_id": torch.zeros(5)}, r"group_id: shape \(5,\); allowed: \(6,\), one per token"),
        (
            {
                "patches": torch.zeros(0, 588),
                "positions": torch.zeros(0, 3),
                "cu_seqlens": cu(0, 0),
            },
            "sample 0 has 0 tokens",
        ),
    ],
)
def test_a_call_that_breaks_a_rule_is_refused_with_the_value_and_the_rule(
    changes: dict, words: str
):
    encoder = build_encoder(ModelConfig(preset="nano", depth=1), seed=0)
    encoder(**good())
    with pytest.raises(ValueError, match=words):
        encoder(**good() | changes)


def test_bounds_may_be_int64():
    encoder = build_encoder(ModelConfig(preset="nano", depth=1), seed=0)
    wide = encoder(**good() | {"cu_seqlens": cu(0, 2, 6).long()})
    assert torch.equal(wide[0], encoder(**good())[0])


def test_without_a_virtual_grid_any_frame_may_come():
    encoder = build_encoder(ModelConfig(preset="nano", depth=1, rope_frames=None), seed=0)
    encoder(**good() | {"positions": at(0, 500)})


def test_a_bag_in_order_is_not_touched():
    samples = Sequences(cu(0, 3, 8), 5)
    groups = torch.tensor([1, 1, 4, 0, 0, 0, 2, 2])
    found = arrange(samples, groups, torch.zeros(8), 0)
    assert found.order is None
    assert found.windows is None
    assert found.whole.bounds.tolist() == [0, 2, 3, 6, 8]
    assert arrange(samples, None, torch.zeros(8), 0).whole is samples


def test_groups_and_windows_become_runs_inside_their_sample():
    samples = Sequences(cu(0, 4, 8), 4)
    groups = torch.tensor([7, 2, 7, 2, 2, 2, 7, 7])
    t = torch.tensor([9, 0, 0, 1, 8, 0, 8, 9])
    found = arrange(samples, groups, t, 8)
    assert found.order is not None
    assert found.order.tolist() == [1, 3, 2, 0, 5, 4, 6, 7]
    assert found.whole.bounds.tolist() == [0, 2, 4, 6, 8]
    assert found.windows is not None
    assert found.windows.bounds.tolist() == [0, 2, 3, 4, 5, 6, 8]
    tokens = torch.arange(8.0)[:, None]
    assert torch.equal(found.restore(tokens[found.order]), tokens)


def test_pairs_that_attend_are_counted_per_sample():
    samples = Sequences(cu(0, 4, 8), 4)
    groups = torch.tensor([7, 2, 7, 2, 2, 2, 7, 7])
    t = torch.tensor([9, 0, 0, 1, 8, 0, 8, 9])
    none = torch.zeros(8)
    assert attended_pairs(samples, None, none, 0, 0.0).tolist() == [16, 16]
    assert attended_pairs(samples, groups, none, 0, 0.0).tolist() == [8, 8]
    # In windows: 4 + 1 + 1 and 1 + 1 + 4 pairs, in a quarter of the blocks.
    assert attended_pairs(samples, groups, t, 8, 0.25).tolist() == [7.5, 7.5]
