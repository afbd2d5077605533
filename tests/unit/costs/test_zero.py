"""ZeRO's bytes by hand; tests/parity/test_traffic.py holds them to live processes."""

from dataclasses import replace

import pytest

from ovtrain.config.model import PRESETS, ModelConfig
from ovtrain.costs import encoder, parameters, zero
from ovtrain.costs.buckets import Limits, reductions, sub_groups
from ovtrain.costs.collectives import Collectives
from ovtrain.costs.gathering import LIVE, PERSISTENT, PREFETCH, gathers
from ovtrain.costs.parameters import Parameter, table
from ovtrain.models.encoder import Encoder
from ovtrain.optim.param_groups import param_groups

LARGE = table(PRESETS["large"])
SIX = (
    Parameter("layernorm_pre.weight", 5, False),
    Parameter("layers.0.mlp.fc1.weight", 7 * PERSISTENT, True),
    Parameter("layers.0.mlp.fc1.bias", 3, False),
)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("pooling", [True, False])
def test_the_table_is_the_models_own(norm: str, pooling: bool):
    config = ModelConfig(preset="nano", mlp=701, norm=norm, pooling=pooling)
    model = Encoder(config)
    found = table(config.size, norm=norm, pooling=pooling)
    assert [(p.name, p.numel) for p in found] == [
        (name, p.numel()) for name, p in model.named_parameters()
    ]
    decayed = {id(p) for p in param_groups(model, 0.1)[0]["params"]}
    assert [p.decayed for p in found] == [id(p) in decayed for p in model.parameters()]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_adds_up_to_the_formula(preset: str):
    size = PRESETS[preset]
    assert parameters.count(table(size)) == encoder.parameters(size)


def test_stage_1_pads_each_group_to_twice_the_ranks():
    # Groups of 700,000 and of 8 numbers on 3 ranks: to multiples of 6, a third of 700,002 and 12.
    assert zero.parts(SIX, 3, 1) == [233_334, 4]
    state = zero.encoder_state(SIX, 3, 1, "bf16")
    assert state.weights == 2 * (700_002 + 12)
    assert state.gradients == 2 * 700_008
    assert state.master == 4 * (233_334 + 4)
    assert state.moments == 8 * (233_334 + 4) + 2 * 4
    assert zero.encoder_state(SIX, 3, 2, "bf16").gradients == 2 * (233_334 + 4)


def test_stage_3_divides_each_parameter_and_keeps_small_ones_whole():
    state = zero.encoder_state(SIX, 3, 3, "fp32")
    assert zero.parts(SIX, 3, 3) == [233_334, 2 + 1]
    assert state.weights == 4 * (233_334 + 3 + 6 + 3)  # two small ones whole, padded
    assert zero.encoder_state(SIX, 1, 3, "fp32").weights == 4 * 700_008


def test_the_plain_backend_keeps_float32_whole():
    for precision in ("bf16", "fp32"):
        state = zero.encoder_state(SIX, 8, 0, precision)
        assert (state.weights, state.gradients, state.master) == (4 * 700_008, 4 * 700_008, 0)
        once = Collectives({"all_reduce": 4 * 700_008}, {"all_reduce": 1})
        assert zero.traffic(SIX, 8, 0, precision, 3) == once


def test_micro_steps_multiply_what_stages_2_and_3_exchange():
    once, twice = (zero.traffic(LARGE, 128, 2, "bf16", k).bytes for k in (1, 2))
    assert twice["all_reduce"] - once["all_reduce"] == 2 * 315_509_760
    assert twice["all_gather"] == once["all_gather"]
    assert zero.traffic(LARGE, 128, 1, "bf16", 1) == zero.traffic(LARGE, 128, 1, "bf16", 9)
    scattered = [zero.traffic(LARGE, 128, 3, "bf16", k).bytes["reduce_scatter"] for k in (1, 2)]
    assert scattered[1] == 2 * scattered[0] == 4 * 315_509_760


def test_one_rank_gathers_nothing():
    for stage in (1, 3):
        assert "all_gather" not in zero.traffic(LARGE, 1, stage, "bf16", 2).bytes


def test_a_small_encoder_is_gathered_once_a_large_one_nearly_twice():
    """Up to 100 M numbers lie whole: all of a small encoder, the last blocks of ViT-L."""
    small, large = PRESETS["small"], LARGE
    divided = [p.numel for p in table(small) if p.numel > PERSISTENT]
    assert gathers(table(small), 4).numel == sum(divided)
    whole = sum(p.numel for p in large if p.numel > PERSISTENT)
    kept = 2 * whole - gathers(large, 4).numel  # from the forward pass for the backward pass
    assert PREFETCH < kept <= LIVE


def test_without_a_look_ahead_every_weight_is_gathered_for_each_of_its_uses():
    deep = table(replace(PRESETS["nano"], depth=4))
    whole = sum(p.numel for p in deep if p.numel > PERSISTENT)
    assert gathers(deep, 4, 0, 0, 10**8).numel == 2 * whole


def test_gathered_weights_are_padded_to_the_ranks():
    odd = table(replace(PRESETS["nano"], mlp=701))
    sizes = [p.numel for p in odd if p.numel > PERSISTENT]
    assert gathers(odd, 7).numel == sum(-(-n // 7) * 7 for n in sizes) > sum(sizes)


def test_calls_of_a_step_by_stage():
    """Two micro-steps on three ranks; two groups, three parameters, two of them kept whole."""
    calls = {stage: zero.traffic(SIX, 3, stage, "bf16", 2).calls for stage in (1, 2, 3)}
    assert calls[1] == {"all_reduce": 1 + 2, "all_gather": 2}
    assert calls[2] == {"all_reduce": 2 + 2, "all_gather": 2}
    # The large one is fetched in each micro-step and stays from the forward to the backward pass.
    assert calls[3] == {"all_reduce": 2, "reduce_scatter": 2, "all_gather": 2 * 1 + 2}


def test_a_bucket_ends_before_the_parameter_that_does_not_fit():
    five = tuple(Parameter(f"layers.0.mlp.{n}", n, n > 2) for n in (4, 3, 2, 5, 1))
    # Stages 2 and 3 take the last first: 1 5 | 2 3 | 4.
    assert reductions(five, 2, 6) == reductions(five, 3, 6) == 3
    # Stage 1 the decayed ones before the others: 4 | 3 | 5 | 2 1.
    assert reductions(five, 1, 5) == 4
    assert reductions(five, 1, 15) == 1


def test_a_piece_of_a_group_ends_with_the_parameter_that_fills_it():
    """On two ranks, at most 4 numbers of a rank: halves of 5, 3 and 2, 6, rounded up."""
    four = tuple(Parameter(f"layers.0.mlp.{n}", n, True) for n in (5, 3, 2, 6))
    assert sub_groups(four, 2, 4) == [[3, 2], [1, 3]]
    assert sub_groups(four, 2, 9) == [[3, 2, 1, 3]]
    limits = Limits(sub_group=4)
    assert zero.norm(four, 2, 3, limits).calls == {"all_reduce": 2}
    state = zero.encoder_state(four, 2, 3, "fp32", limits)
    assert state.moments == 8 * 9 + 4 * 2
