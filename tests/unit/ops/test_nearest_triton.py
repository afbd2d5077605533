"""The Triton search against the torch one, on the GPU where there is one, else in triton's
interpreter; and that its kernels compile for a GPU."""

import os
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ovtrain.ops.nearest_torch import TorchSearch
from tests.helpers.triton_programs import fresh_module, interpret, ptx, recorded_launches
from tests.unit.ops.test_nearest import Cloud, clustered, duplicated, near_ties, random

if os.environ.get("CI"):  # there, its absence is a failure
    import triton
else:
    triton = pytest.importorskip("triton", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if DEVICE == "cpu":
        interpret(monkeypatch)
    return fresh_module("ovtrain.ops.nearest_triton")


# First in this file: triton 3.4 does not take back what its interpreter changes.
def test_kernels_compile_for_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launches = recorded_launches(monkeypatch, tmp_path)
    module = fresh_module("ovtrain.ops.nearest_triton")
    points, centers = (x.bfloat16() for x in random(200, 300, 128))
    module.best_of_groups(points, centers, torch.zeros(300))
    module.distances(points.float(), centers.float(), torch.zeros(200, 20, dtype=torch.int64))
    first, second = (ptx(*launch) for launch in launches)
    assert "wgmma" in first
    assert "fma.rn.f32" not in second  # each operation is rounded


@pytest.mark.parametrize("cloud", [random, clustered, duplicated, near_ties])
@pytest.mark.parametrize(("count", "clusters", "width", "top"), [(20, 500, 70, 1), (7, 1100, 9, 2)])
def test_finds_what_torch_finds(
    search: ModuleType, cloud: Cloud, count: int, clusters: int, width: int, top: int
) -> None:
    points, centers = (x.to(DEVICE) for x in cloud(count, clusters, width))
    ids, squared, repeated = search.TritonSearch(centers)(points, top)
    wanted, distances, _ = TorchSearch(centers, torch.float32)(points, top)
    assert torch.equal(ids, wanted)
    assert torch.equal(squared, distances)
    assert repeated < count or cloud is not random


def test_each_group_gives_its_three_best_and_where_two_of_them_are(search: ModuleType) -> None:
    points, centers = (x.to(DEVICE) for x in random(5, 300, 64))
    bias = torch.linspace(-5, 5, 300, device=DEVICE)
    best = search.best_of_groups(points, centers, bias)
    scores = torch.full((5, 320), -torch.inf, device=DEVICE)
    scores[:, :300] = points @ centers.T + bias
    wanted, places = scores.view(5, 10, 32).topk(3, dim=2)
    found = search.scores_of(best).transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=2 * search.CUT, atol=1e-5)
    assert torch.equal((best & 31).transpose(1, 2)[..., :2].long(), places[..., :2])


def test_many_asked_for_take_the_other_way(search: ModuleType) -> None:
    points, centers = (x.to(DEVICE) for x in random(6, 90, 20))
    ids, squared, _ = search.TritonSearch(centers)(points, 40)
    wanted, distances, _ = TorchSearch(centers, torch.float32)(points, 40)
    assert torch.equal(ids, wanted)
    assert torch.equal(squared, distances)
