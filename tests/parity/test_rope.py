"""Rotary tables and their application against the formula in float64.

Tolerance: angles up to 127 in float32 carry 127 * 2^-24 = 8e-6; 2e-5 covers their cosines.
"""

import math

import pytest
import torch
from torch import Tensor

from ovtrain.models.rope3d import apply_rope, axis_sizes, rope_tables
from ovtrain.schema.errors import ConfigError
from tests.helpers import reference

HEAD_DIM, THETA = 64, 10000.0


@pytest.fixture
def positions() -> Tensor:
    """t up to 63, h up to 127 (tiling), w up to 31."""
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(0, top, (40,), generator=generator) for top in (64, 128, 32)]
    return torch.stack(columns, 1).int()


def vectors(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


def rotated(x: Tensor, positions: Tensor, style: str) -> Tensor:
    return apply_rope(x, *rope_tables(positions, HEAD_DIM, THETA, style))


def test_the_split_is_4_6_6():
    assert axis_sizes(64) == (8, 12, 12)
    assert axis_sizes(128) == (16, 24, 24)


def test_other_heads_are_split_as_near_to_it_as_whole_numbers_allow():
    # Three eighths of 52 are 19.5, of 24 9, of 12 4.5, of 20 7.5.
    sizes = {d: axis_sizes(d) for d in (104, 48, 24, 40, 16)}
    assert sizes == {
        104: (12, 20, 20),
        48: (6, 9, 9),
        24: (4, 4, 4),
        40: (4, 8, 8),
        16: (2, 3, 3),
    }
    for head_dim in (8, 20, 100, 0, -16):
        with pytest.raises(ConfigError, match="multiples of 8 from 16 on"):
            axis_sizes(head_dim)


@pytest.mark.parametrize("head_dim", [104, 24, 40, 56])
@pytest.mark.parametrize("style", ["rotary", "released"])
def test_rotation_of_such_heads_equals_the_reference(positions: Tensor, style: str, head_dim: int):
    x = torch.randn(40, 2, head_dim, generator=torch.Generator().manual_seed(3))
    found = apply_rope(x, *rope_tables(positions, head_dim, THETA, style))
    angle = reference.angles(positions, head_dim, THETA)
    expected = reference.rotate(x.double(), angle, style)
    assert (found.double() - expected).abs().max() < 1e-4


def test_tables_equal_the_formula_element_by_element(positions: Tensor):
    cos, sin = rope_tables(positions, HEAD_DIM, THETA, "rotary")
    assert cos.shape == (40, 1, HEAD_DIM)
    for row in (0, 7, 39):
        for pair in range(HEAD_DIM // 2):
            axis, i = next(
                (a, pair - start)
                for a, start, stop in ((0, 0, 8), (1, 8, 20), (2, 20, 32))
                if start <= pair < stop
            )
            angle = positions[row, axis].item() * THETA ** (-i / (8, 12, 12)[axis])
            for element in (2 * pair, 2 * pair + 1):
                assert cos[row, 0, element].item() == pytest.approx(math.cos(angle), abs=2e-5)
                assert sin[row, 0, element].item() == pytest.approx(math.sin(angle), abs=2e-5)


@pytest.mark.parametrize("style", ["rotary", "released"])
def test_rotation_equals_the_reference(positions: Tensor, style: str):
    x = vectors(40)
    angle = reference.angles(positions, HEAD_DIM, THETA)
    expected = reference.rotate(x.double(), angle, style)
    found = rotated(x, positions, style)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)  # |x| up to 4


@pytest.mark.parametrize("style", ["rotary", "released"])
def test_in_float64_the_rotation_is_the_formula_to_the_last_bits(positions: Tensor, style: str):
    x = vectors(40).double()
    tables = rope_tables(positions, HEAD_DIM, THETA, style, torch.float64)
    expected = reference.rotate(x, reference.angles(positions, HEAD_DIM, THETA), style)
    torch.testing.assert_close(apply_rope(x, *tables), expected, rtol=0, atol=1e-12)


def scores(positions: Tensor, style: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """q.k of one pair of vectors at one relative offset, from every absolute position."""
    q, k = (vectors(1, seed).expand(len(positions), -1, -1).to(dtype) for seed in (2, 3))
    offset = torch.tensor([3, 2, 5])
    tables = [
        rope_tables(at, HEAD_DIM, THETA, style, dtype) for at in (positions, positions + offset)
    ]
    return (apply_rope(q, *tables[0]) * apply_rope(k, *tables[1])).sum(-1)


def test_in_float64_scores_are_invariant_under_any_shift_and_norms_are_kept(positions: Tensor):
    found = scores(positions, "rotary", torch.float64)
    assert (found.amax(0) - found.amin(0)).max() < 1e-10
    x = vectors(40).double()
    tables = rope_tables(positions, HEAD_DIM, THETA, "rotary", torch.float64)
    kept = apply_rope(x, *tables).norm(dim=-1) - x.norm(dim=-1)
    assert kept.abs().max() < 1e-12


def test_rotary_depends_on_relative_positions_only(positions: Tensor):
    found = scores(positions, "rotary")
    # 64 products of size 1, each with the table's error: 64 * 2e-5 at worst, in practice 1e-4.
    assert (found.amax(0) - found.amin(0)).max() < 5e-4


def test_rotary_keeps_norms(positions: Tensor):
    x = vectors(40)
    torch.testing.assert_close(rotated(x, positions, "rotary").norm(dim=-1), x.norm(dim=-1))


def test_released_is_neither_shift_invariant_nor_a_rotation(positions: Tensor):
    """Kept exact for the public weights, not because it is right."""
    found = scores(positions, "released")
    assert (found.amax(0) - found.amin(0)).min() > 1
    x = vectors(40)
    drift = rotated(x, positions, "released").norm(dim=-1) / x.norm(dim=-1) - 1
    assert drift.abs().max() > 0.01


def test_images_at_t_0_are_turned_by_h_and_w_only():
    positions = torch.tensor([[0, 0, 0]])
    x = vectors(1)
    assert torch.equal(rotated(x, positions, "rotary"), x)
