"""The encoder's parameters by name and size, and what a tensor rank holds of each."""

from math import prod

import pytest
import torch

from ovtrain.config.model import ModelConfig, ModelSize
from ovtrain.costs import parameters
from ovtrain.costs.parameters import part_of, table
from ovtrain.models.encoder import Encoder
from ovtrain.schema.cut import REPLICATED, Part

SIZE = ModelSize(width=96, depth=1, heads=3, mlp=105)


def test_a_tensor_rank_holds_parts_of_the_maps_and_all_of_the_rest():
    """Width 96, an MLP of 105, three ranks: written out by hand."""
    held = {p.name: p.numel for p in part_of(table(SIZE, patch=2), 3)}
    block = {
        "layer_norm1.weight": 96,
        "layer_norm1.bias": 96,
        "self_attn.qkv.weight": 96 * 96,  # a third of 288 rows
        "self_attn.qkv.bias": 96,
        "self_attn.out_proj.weight": 96 * 32,  # a third of 96 columns
        "self_attn.out_proj.bias": 96,
        "layer_norm2.weight": 96,
        "layer_norm2.bias": 96,
        "mlp.fc1.weight": 35 * 96,
        "mlp.fc1.bias": 35,
        "mlp.fc2.weight": 96 * 35,
        "mlp.fc2.bias": 96,
    }
    pooling = {
        "probe": 96,
        "attention.in_proj_weight": 96 * 96,
        "attention.in_proj_bias": 96,
        "attention.out_proj.weight": 96 * 32,
        "attention.out_proj.bias": 96,
        "norm.weight": 96,
        "mlp.fc1.weight": 35 * 96,
        "mlp.fc1.bias": 35,
        "mlp.fc2.weight": 96 * 35,
        "mlp.fc2.bias": 96,
    }
    assert held == {
        "embeddings.patch_embedding.weight": 12 * 96,
        "layernorm_pre.weight": 96,
        "layernorm_pre.bias": 96,
        **{f"layers.0.{name}": numel for name, numel in block.items()},
        "layernorm_post.weight": 96,
        "layernorm_post.bias": 96,
        **{f"head.{name}": numel for name, numel in pooling.items()},
    }


@pytest.mark.parametrize("model", [ModelConfig("nano"), ModelConfig("tiny", norm="rms_norm")])
def test_the_table_cuts_what_the_models_own_plan_cuts(model: ModelConfig):
    with torch.device("meta"):
        encoder = Encoder(model)
    cuts = {p.name: p.cut for p in table(model.size, model.patch, norm=model.norm)}
    assert {name: cut for name, cut in cuts.items() if cut.divided} == encoder.tensor_plan()


def test_one_tensor_rank_holds_the_whole_table():
    assert part_of(table(SIZE), 1) == table(SIZE)


@pytest.mark.parametrize("ranks", [3, 1])
def test_parts_have_the_numbers_that_their_cut_gives_the_models_own_shapes(ranks: int):
    config = ModelConfig(preset="nano", width=96, heads=3, mlp=105, depth=1)
    shapes = {name: p.shape for name, p in Encoder(config).named_parameters()}
    for parameter in part_of(table(config.size), ranks):
        whole, cut = shapes[parameter.name], parameter.cut
        assert cut.divides(whole, ranks)
        shape = Part(cut, 0, ranks).shape(whole) if cut.divided else whole
        assert parameter.numel == prod(shape), parameter.name


def test_parts_and_replicated_parameters_add_up_to_the_whole():
    size = ModelSize(64, 2, 2, 128)
    whole, part = table(size), part_of(table(size), 2)
    shared = parameters.count([p for p in whole if p.cut == REPLICATED])
    assert 2 * parameters.count(part) - shared == parameters.count(whole)
    # per block two norms of 128 and the two biases of second maps; around the blocks two norms,
    # the patches, probe, the pooling's norm and two biases
    assert shared == 2 * (4 * 64 + 2 * 64) + 4 * 64 + 588 * 64 + 4 * 64
