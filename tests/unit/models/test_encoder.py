"""Sizes, initialisation and the properties of the encoder that packing tests do not cover."""

from dataclasses import replace

import pytest
import torch

from ovtrain.config.model import PRESETS, ModelConfig
from ovtrain.costs.encoder import NUMBER_BYTES, activation_bytes, parameters
from ovtrain.costs.parameters import table
from ovtrain.costs.zero import cast_bytes
from ovtrain.models.encoder import Encoder, build_encoder
from ovtrain.ops.patchify import normalise_patches

TINY = ModelConfig(preset="tiny")


def meta(preset: str) -> Encoder:
    with torch.device("meta"):
        return Encoder(ModelConfig(preset=preset))


@pytest.mark.parametrize(
    ("preset", "total", "pooling"),
    [
        ("base", 92_595_456, 7_086_336),
        ("large", 315_509_760, 12_594_176),
        ("huge", 650_110_720, 19_674_880),
    ],
)
def test_sizes_are_the_public_releases(preset: str, total: int, pooling: int):
    encoder = meta(preset)
    assert sum(p.numel() for p in encoder.parameters()) == total
    assert sum(p.numel() for p in encoder.head.parameters()) == pooling


@pytest.mark.parametrize(
    ("preset", "width", "depth", "mlp", "head_dim", "billions"),
    [("giant", 1536, 36, 6144, 64, 1.05), ("gigantic", 1664, 48, 8192, 104, 1.88)],
)
def test_sizes_beyond_the_release(
    preset: str, width: int, depth: int, mlp: int, head_dim: int, billions: float
):
    """Four square maps and an MLP with their biases in every block and in the pooling; two layer
    norms in every block and two around them, the pooling's norm and probe, and the patches."""
    encoder, d = meta(preset), width
    maps = 4 * (d * d + d) + 2 * d * mlp + mlp + d
    expected = (depth + 1) * maps + (depth + 1) * 4 * d + 2 * d + 3 * 14 * 14 * d
    assert sum(p.numel() for p in encoder.parameters()) == expected
    assert expected == pytest.approx(billions * 1e9, rel=0.01)
    assert encoder.head_dim == head_dim


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_cost_table_counts_the_same_parameters(preset: str):
    counted = sum(p.numel() for p in meta(preset).parameters())
    assert parameters(PRESETS[preset], patch=14) == counted


def kept_bytes(encoder: Encoder, tokens: int) -> int:
    """What a forward pass of one sample keeps for its backward pass, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    held: dict[int, torch.Tensor] = {}  # alive, so that no address comes twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    patches = torch.randint(0, 256, (tokens, 588), dtype=torch.uint8)
    positions = torch.stack([torch.arange(tokens) // 256, *torch.arange(2 * tokens).view(2, -1)], 1)
    bounds = torch.tensor([0, tokens], dtype=torch.int32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(patches, positions, bounds, tokens)
    return sum(x.untyped_storage().nbytes() for at, x in held.items() if at not in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_cost_what_autograd_saves(dtype: torch.dtype):
    """But for the norms' statistics and the rotation tables, 2 % of so narrow an encoder."""
    kept = kept_bytes(build_encoder(TINY, seed=0).to(dtype), 512)
    counted = activation_bytes(TINY.size, 512, number_bytes=dtype.itemsize)
    assert counted < kept < 1.03 * counted


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_autocast_keeps_bf16_activations_and_copies_of_the_weights():
    encoder = build_encoder(TINY, seed=0)
    copies = cast_bytes(table(TINY.size), 0, "bf16")
    with torch.autocast("cpu", torch.bfloat16):
        kept = kept_bytes(encoder, 512)
    counted = activation_bytes(TINY.size, 512, number_bytes=NUMBER_BYTES["bf16"]) + copies
    assert copies == 2 * parameters(TINY.size)
    assert counted < kept < 1.03 * counted


def test_initialisation_is_a_function_of_the_seed():
    first, again, other = (build_encoder(TINY, seed) for seed in (1, 1, 2))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.head.probe, other.head.probe)


def test_every_kind_of_parameter_starts_as_published():
    encoder = build_encoder(TINY, seed=0)
    for name, p in encoder.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif name == "head.probe":
            assert p.std().item() == pytest.approx(1, abs=0.2)
        elif p.ndim == 1:
            assert (p == 1).all(), name
        elif name == "head.attention.in_proj_weight":
            bound = (6 / (4 * 192)) ** 0.5  # xavier-uniform of the public (3D, D) in-projection
            assert 0.99 * bound < p.abs().max().item() <= bound
        else:
            assert p.std().item() == pytest.approx(TINY.init_std, rel=0.05), name


def test_uint8_patches_are_normalised_and_floats_taken_as_they_are():
    encoder = build_encoder(TINY, seed=0)
    patches = torch.randint(0, 256, (6, 588), dtype=torch.uint8)
    positions, cu = torch.zeros(6, 3), torch.tensor([0, 6], dtype=torch.int32)
    from_bytes, _ = encoder(patches, positions, cu, 6)
    from_floats, _ = encoder(normalise_patches(patches), positions, cu, 6)
    assert torch.equal(from_bytes, from_floats)


def test_positions_matter():
    encoder = build_encoder(TINY, seed=0)
    patches = torch.randint(0, 256, (6, 588), dtype=torch.uint8)
    cu = torch.tensor([0, 6], dtype=torch.int32)
    positions = torch.stack([torch.arange(6), torch.zeros(6), torch.arange(6) % 2], 1)
    here, _ = encoder(patches, positions, cu, 6)
    reversed_, _ = encoder(patches, positions.flip(0), cu, 6)
    assert (here - reversed_).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize(("style", "invariant"), [("rotary", True), ("released", False)])
def test_only_rotary_is_invariant_to_shifts_of_the_whole_bag(style: str, invariant: bool):
    encoder = build_encoder(replace(TINY, rope_style=style, init_std=0.1), seed=0)
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 256, (12, 588), generator=generator).to(torch.uint8)
    positions = torch.randint(0, 8, (12, 3), generator=generator)
    cu = torch.tensor([0, 12], dtype=torch.int32)
    here, _ = encoder(patches, positions, cu, 12)
    there, _ = encoder(patches, positions + torch.tensor([20, 3, 9]), cu, 12)
    moved = (here - there).abs().max().item()
    # Float32 angles of up to 28 are off by 2e-6; six blocks keep that below 1e-4.
    assert moved < 1e-4 if invariant else moved > 1e-2
