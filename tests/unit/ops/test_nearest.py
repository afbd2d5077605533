"""Exact nearest centers, every backend, against all distances in float64 and in float32.

B points, C centers, F width.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ovtrain.ops import nearest
from ovtrain.ops.nearest import CenterIndex, add_rows, backends
from ovtrain.ops.nearest_torch import distance_error, keys_of, squared_distances
from ovtrain.schema.errors import ConfigError, InputError

Cloud = Callable[[int, int, int], tuple[Tensor, Tensor]]  # B, C, F -> points, centers


def random(count: int, clusters: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count * clusters + width)
    return (
        torch.randn(count, width, generator=generator),
        torch.randn(clusters, width, generator=generator),
    )


def clustered(count: int, clusters: int, width: int) -> tuple[Tensor, Tensor]:
    """Points around few centers each, all far from 0."""
    noise, centers = random(count, clusters, width)
    centers += torch.randint(0, 5, (clusters, 1)) * 3 + 100
    return centers[torch.arange(count) * 7 % clusters] + noise * 0.7, centers


def duplicated(count: int, clusters: int, width: int) -> tuple[Tensor, Tensor]:
    """Centers that lie on each other, points that lie on centers."""
    points, centers = random(count, clusters, width)
    centers = centers[torch.arange(clusters) // 3]
    points[::2] = centers[torch.arange(len(points[::2])) % clusters]
    return points, centers


def subnormal(count: int, clusters: int, width: int) -> tuple[Tensor, Tensor]:
    """Whose squares are no normal float32 numbers."""
    points, centers = random(count, clusters, width)
    return points * 1e-21, centers * 1e-21


def near_ties(count: int, clusters: int, width: int) -> tuple[Tensor, Tensor]:
    """Two knots of centers that differ by less than bfloat16 can tell apart."""
    points, centers = random(count, clusters, width)
    side = torch.ones(clusters, 1)
    side[::2] = -1
    return points * 0.01 + centers[0], side * centers[:1] + centers * 0.01


CLOUDS = [random, clustered, duplicated, subnormal, near_ties]
SHAPES = [(50, 300, 100, 10), (33, 200, 64, 1), (9, 70, 37, 70), (5, 99, 513, 3), (1, 1, 1, 1)]


def all_distances(points: Tensor, centers: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The ``top`` smallest of all float32 distances, ties to the lower id: ids, squared."""
    squared = torch.stack([squared_distances(x.float(), centers) for x in points])
    order = keys_of(squared, torch.arange(len(centers))).sort(dim=1).indices[:, :top]
    return order.int(), squared.gather(1, order)


def squares64(points: Tensor, centers: Tensor) -> Tensor:
    return (points.double()[:, None] - centers.double()).square().sum(-1)


@pytest.fixture(params=backends("cpu"))
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["native", "torch"])
def adding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of rows in C++ and in torch."""
    if request.param == "torch":
        monkeypatch.setattr(nearest, "_native_runs", lambda device_type: False)
    elif "native" not in backends("cpu"):
        pytest.skip("the extension does not run here")


def test_float32_distances_are_those_of_float64() -> None:
    points, centers = clustered(20, 30, 515)
    found = squared_distances(points[:, None], centers)
    wanted = squares64(points, centers)
    assert ((found - wanted).abs() <= wanted * distance_error(515)).all()


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("count", "clusters", "width", "top"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_nearest_of_all_centers_are_found_bit_for_bit(
    cloud: Cloud, count: int, clusters: int, width: int, top: int, dtype: torch.dtype, backend: str
) -> None:
    points, centers = cloud(count, clusters, width)
    points = points.to(dtype)
    found = CenterIndex(centers, backend=backend).nearest(points, top)
    ids, squared = all_distances(points, centers, top)
    assert found.ids.dtype == torch.int32
    assert torch.equal(found.ids, ids)
    assert torch.equal(found.squared, squared)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_is_found_is_as_near_in_float64(cloud: Cloud, backend: str) -> None:
    points, centers = cloud(40, 250, 96)
    found = CenterIndex(centers, backend=backend).nearest(points, 12)
    wanted = squares64(points, centers)
    nearest = wanted.gather(1, found.ids.long())
    error = 2 * distance_error(96)
    assert (nearest <= wanted.sort(1).values[:, :12] * (1 + error) + 1e-43).all()
    assert (found.squared[:, 1:] >= found.squared[:, :-1]).all()


def test_candidates_of_bfloat16_alone_would_be_wrong_and_rows_are_searched_again() -> None:
    points, centers = near_ties(64, 600, 128)
    mean = centers.mean(0)
    c, x = ((t - mean).bfloat16().float() for t in (centers, points))
    rough = (x @ c.T - c.square().sum(1) / 2).argmax(1)
    found = CenterIndex(centers, backend="torch").nearest(points, 1)
    ids, _ = all_distances(points, centers, 1)
    assert (rough != ids[:, 0]).sum() > 5
    assert torch.equal(found.ids, ids)
    assert found.repeated > 5


def test_rows_with_more_near_ties_than_candidates_go_through_all_centers(backend: str) -> None:
    points, centers = near_ties(10, 6000, 24)
    points[:5] = -points[:5] * 50
    found = CenterIndex(centers, backend=backend).nearest(points, 4)
    ids, squared = all_distances(points, centers, 4)
    assert torch.equal(found.ids, ids)
    assert torch.equal(found.squared, squared)
    assert found.repeated > 0 or backend == "fp32"


def test_a_point_gets_the_same_bits_in_every_block(backend: str) -> None:
    points, centers = random(150, 400, 90)
    index = CenterIndex(centers, backend=backend)
    whole = index.nearest(points, 5)
    for rows in (slice(0, 1), slice(7, 64), slice(20, 150)):
        part = index.nearest(points[rows], 5)
        assert torch.equal(part.ids, whole.ids[rows])
        assert torch.equal(part.squared, whole.squared[rows])


def test_equal_vectors_are_at_distance_0(backend: str) -> None:
    centers = random(1, 100, 200)[1] + 1000
    found = CenterIndex(centers, backend=backend).nearest(centers[:20].clone(), 1)
    assert torch.equal(found.ids[:, 0], torch.arange(20).int())
    assert not found.squared.any()


def test_values_beyond_float32_squares_still_have_an_order(backend: str) -> None:
    points, centers = random(6, 80, 40)
    found = CenterIndex(centers * 1e20, backend=backend).nearest(points * 1e20, 3)
    ids, squared = all_distances(points * 1e20, centers * 1e20, 3)
    assert torch.equal(found.ids, ids)
    assert torch.equal(found.squared, squared)


def test_no_points_give_no_rows(backend: str) -> None:
    found = CenterIndex(torch.ones(4, 3), backend=backend).nearest(torch.ones(0, 3), 2)
    assert found.ids.shape == found.squared.shape == (0, 2)
    assert found.repeated == 0


def test_what_cannot_be_searched_is_refused_by_name() -> None:
    index = CenterIndex(torch.ones(4, 3))
    with pytest.raises(ConfigError, match=r"top=5: 4 centers; allowed: 1 to 4"):
        index.nearest(torch.ones(2, 3), 5)
    with pytest.raises(InputError, match=r"points: \(2, 5\) torch.float32"):
        index.nearest(torch.ones(2, 5), 1)
    with pytest.raises(InputError, match="float64"):
        CenterIndex(torch.ones(4, 3, dtype=torch.float64))
    with pytest.raises(ConfigError, match="backend=abacus"):
        CenterIndex(torch.ones(4, 3), backend="abacus")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("count", "clusters", "width"), [(200, 13, 570), (5, 3, 1), (0, 2, 8)])
@pytest.mark.usefixtures("adding")
def test_sums_of_rows_are_those_of_exact_integers(
    dtype: torch.dtype, count: int, clusters: int, width: int
) -> None:
    points = random(count, clusters, width)[0].to(dtype)
    ids = torch.arange(count) * 5 % (clusters + 2) - 1  # one below, one above
    sums = torch.arange(clusters * width).view(clusters, width).clone()
    counts = torch.arange(clusters)
    wanted, number = sums.numpy().copy(), counts.numpy().copy()
    add_rows(sums, counts, points, ids.int(), 22)
    for row, owner in zip(points.double().numpy(), ids.tolist(), strict=True):
        if 0 <= owner < clusters:
            wanted[owner] += np.rint(row * 2**22).astype(np.int64)
            number[owner] += 1
    assert np.array_equal(sums.numpy(), wanted)
    assert np.array_equal(counts.numpy(), number)


@pytest.mark.usefixtures("adding")
def test_halves_are_rounded_to_even() -> None:
    sums, counts = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    add_rows(sums, counts, torch.tensor([[0.25, 0.75, -0.25, -1.25]]), torch.zeros(1).long(), 1)
    assert sums.tolist() == [[0, 2, 0, -2]]


@pytest.mark.usefixtures("adding")
def test_sums_do_not_depend_on_the_order_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    points, ids = random(300, 6, 40)[0], torch.arange(300) % 6
    totals = []
    for order, rows in ((torch.arange(300), 4096), (torch.randperm(300), 7)):
        monkeypatch.setattr(nearest, "ROWS", rows)
        sums, counts = torch.zeros(6, 40, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
        add_rows(sums, counts, points[order], ids[order], 30)
        totals.append((sums, counts))
    assert torch.equal(totals[0][0], totals[1][0])
    assert torch.equal(totals[0][1], totals[1][1])
