"""The packed encoder against sequences one by one, and against the dense float64 architecture.

Tolerances: one SDPA call for a run of equal lengths sums in another order than a call per
sequence: 1e-5 on layer-normed tokens of size 1. Float32 against float64 through six blocks: 2e-5.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ovtrain.config.model import ModelConfig
from ovtrain.export.public_format import to_public
from ovtrain.models.encoder import Encoder, build_encoder
from tests.helpers import reference

LENGTHS = (5, 5, 9, 1, 5)
CONFIG = ModelConfig(preset="tiny")


def bounds(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def bag(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, 256, (sum(lengths), 588), generator=generator).to(torch.uint8)
    positions = torch.randint(0, 64, (sum(lengths), 3), generator=generator).int()
    return patches, positions, bounds(lengths)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """Weights large enough that attention is far from uniform, biases that are not 0."""
    encoder = build_encoder(CONFIG, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1, generator=generator)
            elif "qkv" in name or "pool.query" in name or "pool.key_value" in name:
                parameter.mul_(3)
    return encoder.eval()


@torch.no_grad()
def test_packed_equals_one_by_one(encoder: Encoder):
    patches, positions, cu = bag()
    tokens, pooled = encoder(patches, positions, cu, max(LENGTHS))
    for i, length in enumerate(LENGTHS):
        at = slice(int(cu[i]), int(cu[i + 1]))
        alone, one = encoder(patches[at], positions[at], bounds((length,)), length)
        torch.testing.assert_close(tokens[at], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(pooled[i], one[0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("style", ["rotary", "released"])
def test_packed_equals_the_dense_float64_architecture(encoder: Encoder, style: str):
    other = Encoder(replace(CONFIG, rope_style=style))
    other.load_state_dict(encoder.state_dict())
    patches, positions, cu = bag()
    tokens, pooled = other(patches, positions, cu, max(LENGTHS))
    own = {name: tensor.double() for name, tensor in other.state_dict().items()}
    public = to_public(own, other.config)
    for i in range(len(LENGTHS)):
        at = slice(int(cu[i]), int(cu[i + 1]))
        expected = reference.encode(public, other.config, patches[at], positions[at])
        torch.testing.assert_close(tokens[at].double(), expected[0], rtol=0, atol=2e-5)
        torch.testing.assert_close(pooled[i].double(), expected[1], rtol=0, atol=2e-5)


@torch.no_grad()
def test_groups_attend_like_separate_sequences(encoder: Encoder):
    """Tokens: as if each group were a sequence. Pooling still reads the whole sample."""
    lengths, groups = (12, 6), torch.tensor([0] * 4 + [1] * 3 + [2] * 5 + [2] * 6)
    patches, positions, cu = bag(lengths)
    tokens, pooled = encoder(patches, positions, cu, 12, groups)
    apart = (4, 3, 5, 6)
    expected, _ = encoder(patches, positions, bounds(apart), 6)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)
    alone = encoder.pool(expected, cu, 12, "sdpa")
    torch.testing.assert_close(pooled, alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_groups_equal_a_masked_dense_reference(encoder: Encoder):
    patches, positions, cu = bag((12,))
    groups = torch.tensor([0] * 4 + [1] * 3 + [2] * 5)
    tokens, pooled = encoder(patches, positions, cu, 12, groups)
    own = {name: tensor.double() for name, tensor in encoder.state_dict().items()}
    public = to_public(own, CONFIG)
    expected = reference.encode(public, CONFIG, patches, positions, groups)
    torch.testing.assert_close(tokens.double(), expected[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(pooled[0].double(), expected[1], rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_order_of_a_bag_does_not_matter(encoder: Encoder):
    patches, positions, cu = bag((9,))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    tokens, pooled = encoder(patches, positions, cu, 9)
    shuffled, same = encoder(patches[order], positions[order], cu, 9)
    torch.testing.assert_close(shuffled, tokens[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(same, pooled, rtol=0, atol=1e-5)


@torch.no_grad()
def test_gradients_do_not_leak_between_sequences(encoder: Encoder):
    patches, positions, cu = bag()
    floats = torch.randn(len(patches), 588, generator=torch.Generator().manual_seed(3))
    with torch.enable_grad():
        floats.requires_grad_()
        _, pooled = encoder(floats, positions, cu, max(LENGTHS))
        pooled[2].square().sum().backward()
    assert floats.grad is not None
    touched = floats.grad.abs().sum(1) > 0
    expected = torch.zeros(len(patches), dtype=torch.bool)
    expected[int(cu[2]) : int(cu[3])] = True
    assert torch.equal(touched, expected)
