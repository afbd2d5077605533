"""The packed encoder against sequences one by one, padded and masked ones, and the dense float64
architecture.

Tolerances: one SDPA call for a run of equal lengths sums in another order than a call per
sequence: 1e-5 on layer-normed tokens of size 1, and on gradients of that size. Float32 against
float64 through six blocks: 2e-5.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ovtrain.config.model import ModelConfig
from ovtrain.export.public_format import to_public
from ovtrain.models.encoder import Encoder, build_encoder
from ovtrain.ops.varlen_attention import Sequences
from ovtrain.schema.grid import PatchGrid
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
            elif "qkv" in name or "in_proj" in name:
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
    alone = encoder.head(expected, Sequences(cu, 12), "sdpa")
    torch.testing.assert_close(pooled, alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_groups_equal_a_masked_dense_reference(encoder: Encoder):
    patches, positions, cu = bag((12,))
    groups = torch.tensor([0] * 4 + [1] * 3 + [2] * 5)
    tokens, pooled = encoder(patches, positions, cu, 12, groups)
    own = {name: tensor.double() for name, tensor in encoder.state_dict().items()}
    public = to_public(own, CONFIG)
    same = [groups[:, None] == groups] * CONFIG.size.depth
    expected = reference.encode(public, CONFIG, patches, positions, allowed=same)
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


def view(kind: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Patches (n, 588) uint8 and positions (n, 3) of a random picture, frames, strip or clip."""
    rows, columns = rng.integers(1, 6, 2)
    count = {"image": 1, "frames": rng.integers(2, 5), "tiling": rng.integers(2, 5), "codec": 64}
    grid = PatchGrid(int(count[kind]), int(rows), int(columns))
    flat = np.arange(grid.size)
    if kind == "codec":
        flat = np.sort(rng.choice(grid.size, int(rng.integers(1, 50)), replace=False))
    positions = grid.positions(flat)
    if kind == "frames":
        positions[:, 0] = positions[:, 0] * 63 // (grid.frames - 1)
    if kind == "tiling":
        positions[:, 1] += positions[:, 0] * grid.height
        positions[:, 0] = 0
    patches = rng.integers(0, 256, (len(flat), 588), dtype=np.uint8)
    return torch.from_numpy(patches), torch.from_numpy(positions)


def mixture(seed: int) -> list[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(["image", "image", "frames", "tiling", "codec", "codec"])
    return [view(kind, rng) for kind in kinds]


def padded_and_masked(encoder: Encoder, bag: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(N, D), (B, D) through (B, longest) slots: keys beyond a sample's length are masked."""
    weights = to_public(dict(encoder.named_parameters()), encoder.config)
    return reference.encode_padded(weights, encoder.config, bag)


def gradients(
    encoder: Encoder, outputs: tuple[Tensor, Tensor], seed: int
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Of a random projection of tokens and pooled outputs, by parameter."""
    generator = torch.Generator().manual_seed(seed)
    loss = sum((x * torch.randn(x.shape, generator=generator)).sum() / len(x) for x in outputs)
    encoder.zero_grad()
    torch.autograd.backward(loss)
    found = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    return found, (outputs[0].detach(), outputs[1].detach())


@pytest.mark.parametrize("seed", range(4))
def test_mixtures_packed_one_by_one_and_padded_agree_forward_and_backward(
    encoder: Encoder, seed: int
):
    bag = mixture(seed)
    lengths = tuple(len(patches) for patches, _ in bag)
    patches, positions = (torch.cat(column) for column in zip(*bag, strict=True))
    packed = gradients(encoder, encoder(patches, positions, bounds(lengths), max(lengths)), seed)
    parts = [encoder(*one, bounds((len(one[0]),)), len(one[0])) for one in bag]
    tokens, pooled = (torch.cat(column) for column in zip(*parts, strict=True))
    alone = gradients(encoder, (tokens, pooled), seed)
    padded = gradients(encoder, padded_and_masked(encoder, bag), seed)
    for other in (alone, padded):
        for ours, theirs in zip(packed[1], other[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert other[0].keys() == packed[0].keys() == dict(encoder.named_parameters()).keys()
        for name, gradient in packed[0].items():
            scale = max(1.0, other[0][name].abs().max().item())
            torch.testing.assert_close(gradient / scale, other[0][name] / scale, rtol=0, atol=1e-5)


def expected_in_groups(
    encoder: Encoder, bag: tuple[Tensor, Tensor, Tensor], allowed: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """One sample; ``allowed``: per layer, who attends to whom."""
    patches, positions, _ = bag
    weights = to_public({n: t.double() for n, t in encoder.state_dict().items()}, encoder.config)
    return reference.encode(weights, encoder.config, patches, positions, allowed=allowed)


@torch.no_grad()
def test_groups_that_do_not_lie_together_equal_a_masked_dense_reference(encoder: Encoder):
    given = bag((14,))
    groups = torch.tensor([3, 0, 3, 7, 0, 3, 7, 7, 0, 3, 3, 0, 7, 3])
    tokens, pooled = encoder(*given, 14, groups)
    same = groups[:, None] == groups
    expected = expected_in_groups(encoder, given, [same] * CONFIG.size.depth)
    torch.testing.assert_close(tokens.double(), expected[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(pooled[0].double(), expected[1], rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("grouped", [False, True])
def test_windowed_layers_equal_a_masked_dense_reference(encoder: Encoder, grouped: bool):
    config = replace(CONFIG, window_frames=16, window_layers=(0, 2, 3))
    windowed = Encoder(config)
    windowed.load_state_dict(encoder.state_dict())
    patches, positions, cu = given = bag((20,))
    groups = torch.arange(20) % 3 if grouped else None
    tokens, pooled = windowed(patches, positions, cu, 20, groups)
    whole = torch.ones(20, 20, dtype=torch.bool)
    if groups is not None:
        whole = groups[:, None] == groups
    window = positions[:, 0] // 16
    inside = whole & (window[:, None] == window)
    allowed = [inside if i in config.window_layers else whole for i in range(config.size.depth)]
    expected = expected_in_groups(encoder, given, allowed)
    torch.testing.assert_close(tokens.double(), expected[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(pooled[0].double(), expected[1], rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_perturbing_one_group_leaves_the_others_bit_identical(encoder: Encoder, dtype: torch.dtype):
    other = Encoder(CONFIG)
    other.load_state_dict(encoder.state_dict())
    other.to(dtype)
    lengths = (40, 25)
    patches, positions, cu = bag(lengths)
    groups = torch.randint(0, 4, (65,), generator=torch.Generator().manual_seed(5))
    before, _ = other(patches, positions, cu, 40, groups)
    for group in range(4):
        mine = (groups == group) & (torch.arange(65) < 40)
        changed = torch.where(mine[:, None], 255 - patches, patches)
        after, _ = other(changed, positions, cu, 40, groups)
        assert torch.equal(after[~mine], before[~mine])
        assert (after[mine] != before[mine]).any(1).all()


def test_recomputed_blocks_give_the_same_gradients(encoder: Encoder):
    patches, positions, cu = bag()
    found = []
    for every in (0, 1, 2):
        other = Encoder(replace(CONFIG, recompute=every))
        other.load_state_dict(encoder.state_dict())
        found.append(gradients(other, other(patches, positions, cu, max(LENGTHS)), 0)[0])
    for other in found[1:]:
        for name, gradient in found[0].items():
            assert torch.equal(gradient, other[name]), name


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, while it compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_blocks_agree_whatever_the_lengths(encoder: Encoder):
    other = Encoder(CONFIG)
    other.load_state_dict(encoder.state_dict())
    other.compile_layers()
    for seed in range(3):
        lengths = tuple(range(3 + seed, 9 + 2 * seed))
        patches, positions, cu = bag(lengths, seed)
        plain = gradients(encoder, encoder(patches, positions, cu, max(lengths)), seed)
        compiled = gradients(other, other(patches, positions, cu, max(lengths)), seed)
        for ours, theirs in zip(compiled[1], plain[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        for name, gradient in plain[0].items():
            scale = max(1.0, gradient.abs().max().item())
            torch.testing.assert_close(
                compiled[0][name] / scale, gradient / scale, rtol=0, atol=1e-5
            )
