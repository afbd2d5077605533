"""Slices, seeds and norms. Collectives on real processes: ``tests/parity/test_worlds.py``."""

import math

import pytest
import torch

from ovtrain.config.step_plan import split
from ovtrain.distributed import collectives
from ovtrain.distributed.context import seed_for, start_world, stop_world
from ovtrain.distributed.grad_norm import clip_factor, joint_norm
from tests.helpers.training import world


def test_a_world_slices_like_split():
    assert world(1, 3).slice_of(10) == split(10, 1, 3)
    assert world().is_main
    assert not world(1, 2).is_main


def test_seeds_depend_on_seed_role_and_counters_only():
    assert seed_for(0, "order", 1) == seed_for(0, "order", 1) == 5723403778144229568
    found = {seed_for(s, r, c) for s in range(3) for r in ("order", "draw") for c in range(50)}
    assert len(found) == 300
    assert all(0 <= seed < 2**63 for seed in found)


def test_counters_do_not_run_together():
    assert seed_for(0, "a", 1, 23) != seed_for(0, "a", 12, 3)


def test_one_process_is_a_world_of_its_own(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    alone = start_world()
    assert (alone.rank, alone.size, alone.group) == (0, 1, None)
    stop_world()


def test_collectives_of_one_process_are_the_identity():
    x = torch.arange(3.0, requires_grad=True)
    assert collectives.all_gather_slots(x, 3, None) is x
    assert collectives.reduce_scatter_slots(x, 3, None) is x
    assert collectives.all_gather_padded(x, 3, None, fill=-1) is x
    reduced = collectives.all_reduce(x, None)
    assert torch.equal(reduced, x)
    assert not reduced.requires_grad
    assert collectives.gather_objects({"a": 1}, None) == [{"a": 1}]
    assert collectives.broadcast_object("b", None) == "b"


def test_the_joint_norm_is_that_of_the_concatenated_gradients():
    generator = torch.Generator().manual_seed(0)
    encoder, head = (torch.randn(n, generator=generator) for n in (100, 37))
    found = joint_norm(encoder.norm(), head.square().sum())
    assert found.item() == pytest.approx(torch.cat([encoder, head]).norm().item(), rel=1e-6)


def test_clipping_brings_the_norm_to_the_limit_and_never_enlarges():
    assert clip_factor(torch.tensor(4.0), 2.0).item() == pytest.approx(0.5, rel=1e-6)
    assert clip_factor(torch.tensor(1.0), 2.0).item() == 1
    assert clip_factor(torch.tensor(4.0), 0.0).item() == 1
    assert math.isnan(clip_factor(torch.tensor(float("nan")), 1.0).item())
