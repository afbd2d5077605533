"""Data order: pure functions whose promises are exact, not statistical."""

from collections import Counter

import numpy as np
import pytest

from ovtrain.config.data import VIEW_BLOCK, SourceConfig, ViewShares, mixture_counts
from ovtrain.config.step_plan import StepPlan
from ovtrain.data.order import SampleOrder, view_of


def test_every_epoch_holds_every_sample_once_in_another_order():
    order = SampleOrder("video", 37, seed=1)
    epochs = [[order(g) for g in range(37 * e, 37 * (e + 1))] for e in range(3)]
    for number, epoch in enumerate(epochs):
        assert sorted(sample for sample, _ in epoch) == list(range(37))
        assert {e for _, e in epoch} == {number}
    assert epochs[0] != [(sample, 0) for sample, _ in epochs[1]]


def test_the_order_is_a_function_of_seed_source_and_place():
    places = np.random.default_rng(0).permutation(90).tolist()
    straight = {g: SampleOrder("video", 37, 1)(g) for g in range(90)}
    jumping = SampleOrder("video", 37, 1)
    assert {g: jumping(g) for g in places} == straight
    for other in (SampleOrder("image", 37, 1), SampleOrder("video", 37, 2)):
        assert [other(g) for g in range(37)] != [straight[g] for g in range(37)]


@pytest.mark.parametrize("shares", [ViewShares(), ViewShares(1, 0, 0), ViewShares(0.25, 0.25, 0.5)])
def test_every_block_of_sixteen_holds_the_exact_shares(shares: ViewShares):
    for block in range(20):
        views = Counter(
            view_of(g, shares, seed=3, source="video")
            for g in range(block * VIEW_BLOCK, (block + 1) * VIEW_BLOCK)
        )
        assert tuple(views[v] for v in range(3)) == shares.counts()


def test_blocks_are_permuted_differently():
    def block(number: int, seed: int = 3, source: str = "v") -> list[int]:
        places = range(number * VIEW_BLOCK, (number + 1) * VIEW_BLOCK)
        return [view_of(g, ViewShares(), seed, source) for g in places]

    assert block(0) == block(0)
    assert block(0) != block(1)
    assert block(0) != block(0, seed=4)
    assert block(0) != block(0, source="w")


@pytest.mark.parametrize(
    ("shares", "batch", "counts"),
    [
        ([1, 1], 8, [4, 4]),
        ([1, 1], 7, [4, 3]),
        ([2, 1, 1], 10, [5, 3, 2]),
        ([0.7, 0.2, 0.1], 10, [7, 2, 1]),
        ([5], 3, [3]),
    ],
)
def test_mixture_counts_are_the_largest_remainders(shares, batch, counts):
    sources = [SourceConfig(str(i), share=share) for i, share in enumerate(shares)]
    assert mixture_counts(sources, batch) == counts


@pytest.mark.parametrize(("ranks", "batch"), [(1, 32), (3, 40), (8, 100)])
def test_sixteen_thousand_samples_hold_the_papers_shares_exactly(ranks: int, batch: int):
    plan = StepPlan.build([batch], ranks, 0)
    dealt = [
        step * batch + place
        for step in range(16_000 // batch)
        for rank in range(ranks)
        for place in plan.places(0, rank, 0)
    ]
    views = [view_of(g, ViewShares(), 0, "video") for g in dealt]
    assert [views.count(view) for view in range(3)] == [8000, 6000, 2000]
