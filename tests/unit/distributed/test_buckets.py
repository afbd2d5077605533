"""Sums of gradients begin as soon as a bucket's gradients are there, in one order."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from ovtrain.costs.buckets import cut_into_buckets
from ovtrain.distributed import buckets
from ovtrain.distributed.buckets import GradientBuckets
from ovtrain.distributed.context import World, start_world, stop_world


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield start_world(force_group=True)
    stop_world()


def test_a_bucket_ends_with_the_parameter_that_fills_it():
    assert cut_into_buckets([3, 3, 9, 1, 1], 5) == [[0, 1], [2], [3, 4]]
    assert cut_into_buckets([10], 5) == [[0]]
    assert cut_into_buckets([], 5) == []


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))


def test_gradients_are_those_of_the_pass_and_sums_begin_inside_it(group, monkeypatch):
    model = chain()
    begun: list[int] = []
    own = buckets.reduce_later
    monkeypatch.setattr(buckets, "reduce_later", lambda x, g: begun.append(x.numel()) or own(x, g))
    made = GradientBuckets(list(model.parameters()), group.group, numel=20)
    inside: list[int] = []
    model[0].weight.register_post_accumulate_grad_hook(lambda _: inside.append(len(begun)))
    x = torch.randn(3, 4)
    for last in (False, True):
        if last:
            made.arm()
        model(x).sum().backward()
        assert bool(begun) == last
    assert begun[:3] == [20, 20, 20]
    assert inside[-1] >= 3  # the last layers' sums, before the first layer's gradient
    made.wait()
    found = [p.grad.clone() for p in model.parameters()]
    alone = chain()
    for _ in range(2):
        alone(x).sum().backward()
    assert all(torch.equal(f, p.grad) for f, p in zip(found, alone.parameters(), strict=True))
    assert sum(begun) == sum(p.numel() for p in model.parameters())


def test_a_parameter_that_took_no_part_counts_as_zeros(group):
    model = chain()
    made = GradientBuckets(list(model.parameters()), group.group, numel=10**6)
    made.arm()
    model[0](torch.randn(3, 4)).sum().backward()
    made.wait()
    assert model[3].weight.grad.abs().max() == 0
    assert model[0].weight.grad.abs().max() > 0
