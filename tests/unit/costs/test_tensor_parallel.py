"""What tensor ranks exchange in a micro-step, by hand."""

from dataclasses import replace

from ovtrain.config.model import ModelSize
from ovtrain.costs.collectives import Collectives
from ovtrain.costs.tensor_parallel import Activations, exchanged

SIZE = ModelSize(width=10, depth=3, heads=2, mlp=20)
WHOLE = Activations(SIZE, tensor_ranks=2, sequence=False, number=2, weight=4)
DIVIDED = replace(WHOLE, tensor_ranks=4, sequence=True)


def test_without_sequence_parallelism_all_of_it_is_all_reduced():
    # Three blocks twice forward and twice backward; the pooling's tokens backward. Seven tokens and
    # three samples of ten numbers of two bytes.
    found = exchanged(WHOLE, 7, 3)
    assert found.calls == {"all_reduce": 3 * 4 + 3 + 1 + 1}
    assert found.bytes == {"all_reduce": 2 * 10 * (12 * 7 + 3 * 3 + 7 + 1)}
    bare = exchanged(replace(WHOLE, pooling=False), 7, 3)
    assert bare == Collectives({"all_reduce": 20 * 12 * 7}, {"all_reduce": 12})


def test_with_it_tokens_and_samples_are_padded_to_the_tensor_ranks():
    # Seven tokens count as eight, three samples as four.
    found = exchanged(DIVIDED, 7, 3)
    gathers, scatters = 4 * 3 + 1 + 1, 4 * 3 + 1
    assert found.calls["all_gather"] == gathers + 4
    assert found.bytes["all_gather"] == 20 * (8 * gathers + 4 * 4)
    assert found.calls["reduce_scatter"] == scatters + 3
    assert found.bytes["reduce_scatter"] == 20 * (8 * scatters + 4 * 3)
    # Gradients of eight norms of 2 x 10 float32 and of the pooling's, of 10; the probe's.
    assert found.calls["all_reduce"] == 8 + 1 + 1
    assert found.bytes["all_reduce"] == 4 * 10 * (8 * 2 + 1) + 20


def test_an_rms_norm_has_half_the_gradients():
    found = exchanged(replace(DIVIDED, norm="rms_norm", weight=2), 8, 4)
    assert found.bytes["all_reduce"] == 2 * 10 * 9 + 20
    assert found.calls["all_reduce"] == 10


def test_without_pooling_the_last_tokens_stay_divided():
    found = exchanged(replace(DIVIDED, pooling=False), 8, 4)
    assert found.calls == {"all_gather": 13, "reduce_scatter": 12, "all_reduce": 7}
    assert found.bytes["all_gather"] == 13 * 20 * 8


def test_a_recomputed_block_repeats_its_forward_pass_but_for_the_last_exit():
    # Of three blocks the first and the third.
    kept, again = (exchanged(replace(WHOLE, recompute=k), 7, 3) for k in (0, 2))
    assert again.calls["all_reduce"] - kept.calls["all_reduce"] == 2
    assert again.bytes["all_reduce"] - kept.bytes["all_reduce"] == 2 * 20 * 7
    kept, again = (exchanged(replace(DIVIDED, recompute=k), 7, 3) for k in (0, 1))
    more = {kind: again.calls[kind] - n for kind, n in kept.calls.items()}
    assert more == {"all_gather": 2 * 3, "reduce_scatter": 3, "all_reduce": 0}
    assert again.bytes["all_gather"] - kept.bytes["all_gather"] == 6 * 20 * 8


def test_one_tensor_rank_exchanges_nothing():
    for run in (WHOLE, DIVIDED):
        assert exchanged(replace(run, tensor_ranks=1), 7, 3) == Collectives()
