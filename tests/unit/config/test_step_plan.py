"""Samples and class rows are dealt once, near-evenly, within bounds."""

from collections import Counter

import pytest

from ovtrain.config.step_plan import StepPlan, split


@pytest.mark.parametrize(("count", "parts"), [(10, 3), (2, 5), (0, 4), (16, 16), (7, 1)])
def test_splits_are_contiguous_complete_and_near_even(count: int, parts: int):
    ranges = [split(count, part, parts) for part in range(parts)]
    assert [x for r in ranges for x in r] == list(range(count))
    sizes = [len(r) for r in ranges]
    assert max(sizes) - min(sizes) <= 1


PLANS = [
    ([8, 8], 1, 0),
    ([7, 3], 2, 0),
    ([7, 3], 4, 2),
    ([4, 4], 1, 3),
    ([1, 1], 4, 0),
    ([16, 5, 2], 3, 4),
    ([129, 66, 64], 5, 3),
]


@pytest.mark.parametrize(("counts", "ranks", "micro_batch"), PLANS)
def test_a_step_deals_every_sample_exactly_once(counts, ranks, micro_batch):
    plan = StepPlan.build(counts, ranks, micro_batch)
    for source, count in enumerate(counts):
        dealt = [
            place
            for rank in range(ranks)
            for micro in range(plan.micro_steps)
            for place in plan.places(source, rank, micro)
        ]
        assert dealt == list(range(count))


@pytest.mark.parametrize(("counts", "ranks", "micro_batch"), PLANS)
def test_no_micro_step_exceeds_the_micro_batch(counts, ranks, micro_batch):
    plan = StepPlan.build(counts, ranks, micro_batch)
    held = [sum(plan.held(r, m)) for r in range(ranks) for m in range(plan.micro_steps)]
    assert max(held) <= (micro_batch or sum(counts))
    for micro in range(plan.micro_steps):
        assert plan.slots(micro) == max(1, *(sum(plan.held(r, micro)) for r in range(ranks)), 1)


@pytest.mark.parametrize(("counts", "ranks", "micro_batch"), PLANS)
def test_no_fewer_micro_steps_would_do(counts, ranks, micro_batch):
    plan = StepPlan.build(counts, ranks, micro_batch)
    assert plan.micro_steps == 1 or micro_batch
    for fewer in range(1, plan.micro_steps):
        other = StepPlan(counts, ranks, fewer)
        held = [sum(other.held(r, m)) for r in range(ranks) for m in range(fewer)]
        assert max(held) > micro_batch


@pytest.mark.parametrize(("counts", "ranks", "micro_batch"), PLANS)
def test_ranks_hold_the_parts_of_their_shares(counts, ranks, micro_batch):
    plan = StepPlan.build(counts, ranks, micro_batch)
    for micro in range(plan.micro_steps):
        held = Counter(tuple(plan.held(rank, micro)) for rank in range(ranks))
        parts = Counter[tuple[int, ...]]()
        for share, times in plan.shares.items():
            parts[plan.part(share, micro)] += times
        assert parts == held


@pytest.mark.parametrize(("counts", "ranks", "micro_batch"), PLANS)
def test_gathered_rows_find_each_samples_place(counts, ranks, micro_batch):
    """Simulated gather: each rank packs (source, place) in packing order, padded to the slots."""
    plan = StepPlan.build(counts, ranks, micro_batch)
    for micro in range(plan.micro_steps):
        gathered: list[tuple[int, int] | None] = []
        for rank in range(ranks):
            mine = [(s, p) for s in range(len(counts)) for p in plan.places(s, rank, micro)]
            gathered += [*mine, *[None] * (plan.slots(micro) - len(mine))]
        for source in range(len(counts)):
            found = [gathered[row] for row in plan.gathered_rows(source, micro)]
            expected = [p for r in range(ranks) for p in plan.places(source, r, micro)]
            assert found == [(source, place) for place in expected]
