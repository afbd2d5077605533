"""What the heads of a step exchange, by hand."""

from ovtrain.costs.collectives import Collectives
from ovtrain.costs.exchange import HeadBatch, exchanged

LOGISTIC = HeadBatch((6, 5), 10, exponential=False)


def test_heads_exchange_labels_once_and_embeddings_per_micro_step():
    found = exchanged([LOGISTIC], [4, 3], width=8, data_ranks=2, half=True)
    assert found == {
        "data": Collectives(
            {"all_gather": 2 * 7 * 10 * 4 + 2 * 7 * 8 * 2, "reduce_scatter": 2 * 7 * 8 * 4},
            {"all_gather": 1 + 2, "reduce_scatter": 2},
        ),
        "world": Collectives({"all_reduce": 4 * 3}, {"all_reduce": 1}),
    }


def test_exponential_losses_exchange_maxima_cosines_and_sums():
    heads = [HeadBatch((6, 0), 10, True), HeadBatch((1, 2), 3, True), HeadBatch((1, 1), 2, False)]
    found = exchanged(heads, [4, 3], width=8, data_ranks=2, half=False)["world"]
    first = 6 * (10 + 2) + 1 * (3 + 2)
    second = 2 * (3 + 2)  # the first head has no sample there
    assert found.bytes["all_reduce"] == 4 * (first + second) + 4 * (3 + 2)
    assert found.calls["all_reduce"] == 2 * 2 + 1


def test_a_micro_step_without_a_sample_of_an_exponential_loss_exchanges_no_statistics():
    heads = [HeadBatch((6, 0), 10, True)]
    found = exchanged(heads, [4, 3], width=8, data_ranks=2, half=False)["world"]
    assert found.calls["all_reduce"] == 2 + 1


def test_tensor_ranks_add_up_the_gradients_of_their_embeddings():
    """Two data ranks of three tensor ranks: what data ranks gather does not grow."""
    found = exchanged([LOGISTIC], [4, 3], 8, 2, 3, half=True)
    assert found["tensor"] == Collectives({"all_reduce": 4 * 7 * 8}, {"all_reduce": 2})
    alone = exchanged([LOGISTIC], [4, 3], 8, 2, half=True)
    assert {group: found[group] for group in alone} == alone


def test_one_data_rank_of_several_tensor_ranks_gathers_nothing():
    assert exchanged([LOGISTIC], [4, 3], 8, 1, 2, half=True).keys() == {"tensor", "world"}
    assert "data" in exchanged([LOGISTIC], [4, 3], 8, 1, half=True)
