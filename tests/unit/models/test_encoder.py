"""Sizes, initialisation and the properties of the encoder that packing tests do not cover."""

from dataclasses import replace

import pytest
import torch

from ovtrain.config.model import PRESETS, ModelConfig
from ovtrain.costs.encoder import parameters
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


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_cost_table_counts_the_same_parameters(preset: str):
    counted = sum(p.numel() for p in meta(preset).parameters())
    assert parameters(PRESETS[preset], patch=14) == counted


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
