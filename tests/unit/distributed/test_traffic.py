"""What the counter counts, on a group of one process. More of them: tests/parity."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from ovtrain.distributed.collectives import all_gather_slots, all_reduce, reduce_scatter_slots
from ovtrain.distributed.traffic import Traffic


@pytest.fixture
def group(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_payloads_are_whole_tensors_gathered_outputs_and_scattered_inputs(group: dist.ProcessGroup):
    with Traffic() as counted:
        all_gather_slots(torch.ones(3, 5), 4, group)
        reduce_scatter_slots(torch.ones(4, 5), 4, group)
        all_reduce(torch.ones(7, dtype=torch.float64), group)
        all_reduce(torch.ones(2, dtype=torch.bfloat16), group, "max")
    assert counted.bytes == {"all_gather": 4 * 5 * 4, "reduce_scatter": 4 * 5 * 4, "all_reduce": 60}
    assert counted.calls == {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}


def test_whoever_calls_is_counted(group: dist.ProcessGroup):
    with Traffic() as counted:
        dist.broadcast(torch.ones(3), src=0, group=group)
        dist.all_gather([torch.empty(2)], torch.ones(2), group=group)
        work = dist.all_reduce(torch.ones(1), group=group, async_op=True)
        assert work is not None
        work.wait()
        dist.barrier(group)
    assert counted.bytes == {"broadcast": 12, "all_gather": 8, "all_reduce": 4}


def test_backward_passes_are_counted(group: dist.ProcessGroup):
    x = torch.ones(6, requires_grad=True)
    x.register_hook(lambda gradient: all_reduce(gradient, group))
    with Traffic() as counted:
        x.sum().backward()
    assert counted.bytes == {"all_reduce": 24}


def test_other_threads_and_other_times_are_not(group: dist.ProcessGroup):
    all_reduce(torch.ones(1), group)
    with Traffic() as counted:
        thread = Thread(target=all_reduce, args=(torch.ones(1), group))
        thread.start()
        thread.join()
    all_reduce(torch.ones(1), group)
    assert not counted.bytes


def test_functional_collectives_are_refused_rather_than_left_out(group: dist.ProcessGroup):
    with Traffic(), pytest.raises(NotImplementedError, match="_c10d_functional"):
        functional.all_reduce(torch.ones(3), "sum", group)
