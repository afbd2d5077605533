"""The published tables come out of the formulas."""

from dataclasses import replace

import pytest

from ovtrain.config.model import PRESETS, ModelSize
from ovtrain.costs import encoder, head, tokens
from ovtrain.costs.device import peak_tflops


@pytest.mark.parametrize(
    ("preset", "whole", "pooling"),
    [
        ("base", 92_595_456, 7_086_336),
        ("large", 315_509_760, 12_594_176),
        ("huge", 650_110_720, 19_674_880),
    ],
)
def test_parameters_equal_the_release(preset: str, whole: int, pooling: int):
    assert encoder.parameters(PRESETS[preset]) == whole
    assert encoder.pooling_parameters(PRESETS[preset]) == pooling


@pytest.mark.parametrize(
    ("n", "forward", "training", "share"),
    [
        (256, 0.1625, 0.487, 0.040),
        (1024, 0.7271, 2.180, 0.142),
        (2048, 1.6604, 4.979, 0.248),
        (4096, 4.1453, 12.43, 0.398),
    ],
)
def test_flops_of_the_large_encoder(n: int, forward: float, training: float, share: float):
    large = PRESETS["large"]
    # The table agrees with its own formula to 3.5e-4; the training column is the exact one.
    assert encoder.forward_flops(large, n) / 1e12 == pytest.approx(forward, rel=5e-4)
    assert encoder.training_flops(large, n) / 1e12 == pytest.approx(training, rel=6e-4)
    assert encoder.attention_share(large, n) == pytest.approx(share, abs=5.1e-4)


def test_whole_job_of_the_paper():
    large = PRESETS["large"]
    assert 13e9 * encoder.training_flops(large, 256) == pytest.approx(6.33e21, rel=2e-3)
    stage2 = 2e9 * (encoder.training_flops(large, 2048) + encoder.training_flops(large, 1024))
    assert stage2 == pytest.approx(1.43e22, rel=2e-3)


def test_dense_head_of_two_million_classes_takes_32_8_gb():
    parts = (head.weight_bytes, head.optimizer_bytes, head.dense_gradient_bytes)
    assert sum(part(2_000_000, 1024) for part in parts) == pytest.approx(32.8e9, rel=2e-3)


def test_a_rowwise_head_of_two_million_classes_takes_8_2_gb():
    rows = head.weight_bytes(2_000_000, 1024, rows="bf16")
    state = head.optimizer_bytes(2_000_000, 1024, optimizer="rowwise_adamw", moments="bf16")
    assert rows + state == pytest.approx(8.2e9, rel=5e-3)
    adagrad = head.optimizer_bytes(2_000_000, 1024, optimizer="rowwise_adagrad")
    assert adagrad == 2_000_000 * 16


def test_head_step_of_128_ranks_takes_a_quarter_millisecond_of_math():
    flops = head.step_flops(batch=16_384, sampled=200_000, width=1024, world_size=128)
    assert flops / 600e12 == pytest.approx(0.26e-3, rel=0.02)


def test_head_rows_cover_all_classes():
    assert [head.rows_per_rank(10, world) for world in (1, 2, 3, 4)] == [10, 5, 4, 3]


def test_video_views_hold_one_budget():
    assert tokens.per_view(224, 14, 2048, 8) == {
        "codec": 2048,
        "frames": 2048,
        "tiling": 2048,
        "image": 256,
    }


@pytest.mark.parametrize(("tokens", "mib"), [(1024, 156), (2048, 312), (4096, 624)])
def test_activations_are_those_measured(tokens: int, mib: int):
    """docs/encoder.md: four blocks of ViT-L in bf16."""
    four = replace(PRESETS["large"], depth=4)
    assert encoder.activation_bytes(four, tokens) / 2**20 == pytest.approx(mib, rel=0.01)


def test_recomputed_blocks_keep_their_input_alone():
    size = replace(PRESETS["large"], depth=4)
    block, d = 2 * (10 * 1024 + 2 * 4096), 2 * 1024
    none, half, every = (encoder.activation_bytes(size, 1, recompute=k) for k in (0, 2, 1))
    assert none - half == 2 * (block - d) - (block - d)  # one of them is there again, for a while
    assert none - every == 4 * (block - d) - (block - d)


def test_tensor_ranks_divide_activations_inside_of_attention_and_mlp():
    """Width 8, MLP 20, three blocks, two ranks, patches of 2 x 2, five tokens; by hand."""
    size = ModelSize(8, 3, 2, 20)
    whole = encoder.activation_bytes(size, 5, 2, number_bytes=4)
    assert whole == 4 * 5 * (3 * (10 * 8 + 2 * 20) + 12 + 5 * 8)
    cut = encoder.activation_bytes(size, 5, 2, number_bytes=4, tensor_ranks=2)
    # Norms' inputs and outputs stay, 4 x 8; around the blocks the pooling's keys and values go.
    assert cut == 4 * 5 * (3 * (4 * 8 + 6 * 4 + 2 * 10) + 12 + 3 * 8 + 2 * 4)
    # Five tokens count as six. Inputs of norms are divided, too, but for the first, which is a
    # slice; what was gathered for qkv and fc1 is whole.
    shared = encoder.activation_bytes(size, 5, 2, number_bytes=4, tensor_ranks=2, sequence=True)
    assert shared == 4 * 6 * (3 * (2 * 4 + 2 * 8 + 6 * 4 + 2 * 10) + 12 + 2 * 8 + 4 + 2 * 4)
    alone = encoder.activation_bytes(size, 5, 2, number_bytes=4, sequence=True)
    assert alone == whole


def test_a_recomputed_block_keeps_its_part_of_the_tokens():
    size = ModelSize(8, 3, 2, 20)
    block = 2 * 4 + 2 * 8 + 6 * 4 + 2 * 10
    kept, again = (
        encoder.activation_bytes(size, 6, 2, recompute=k, tensor_ranks=2, sequence=True)
        for k in (0, 1)
    )
    assert kept - again == 2 * 6 * (2 * (block - 4))  # three of them, one of which is back


def test_drawn_rows_of_a_rank():
    # 200,000 of 2 M rows over 128 ranks: 1,563 rows of 1,024 numbers, and their gradient.
    assert head.drawn_bytes(200_000, 1024, 128, half=True) == 1563 * 1024 * 4
    assert head.drawn_bytes(200_000, 1024, 128, half=True, micro_steps=2) == 1563 * 1024 * 6
    assert head.drawn_bytes(200_000, 1024, 128, half=False) == 1563 * 1024 * 8


def test_pairs_replace_the_square_of_the_length():
    large = PRESETS["large"]
    assert encoder.training_flops(large, 256, pairs=256**2) == encoder.training_flops(large, 256)
    saved = encoder.forward_flops(large, 2048) - encoder.forward_flops(
        large, 2048, pairs=8 * 256**2
    )
    assert saved == 24 * 4 * 1024 * (2048**2 - 8 * 256**2)


def test_peaks_are_found_by_a_part_of_the_devices_name():
    assert peak_tflops("NVIDIA H200") == 989
    assert peak_tflops("NVIDIA H100 PCIe") == 756
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == 312
    for other in ("NVIDIA L40", "NVIDIA RTX A1000", "NVIDIA RTX A4000"):
        assert peak_tflops(other) is None
    assert peak_tflops("CPU x86_64, 2 threads per rank") is None
