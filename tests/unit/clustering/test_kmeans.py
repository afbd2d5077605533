from itertools import pairwise

import numpy as np
import pytest

from clustering.kmeans import draw
from clustering.kmeans import lloyd as lloyd_module
from clustering.kmeans.draw import RowOrder, first_centers
from clustering.kmeans.lloyd import Lloyd
from clustering.kmeans.passes import Passes
from clustering.kmeans.state import MemoryState
from clustering.neighbours import make_layout
from clustering.points import Points
from ovtrain.config.cluster import ClusterConfig
from ovtrain.schema.errors import ConfigError, InputError, LabelError
from tests.unit.clustering.clusterings import ALONE, cluster, distinct, points_of
from tests.unit.clustering.reference import blobs, distances, lloyd, unit

MARGIN = 1e-5
"""Of squared distances: what float32 may order otherwise than float64 does."""


@pytest.mark.parametrize("engine", ["gemm", "faiss"])
@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_each_engine_is_lloyd_in_float64(engine, spherical, offset):
    x = blobs(offset=offset, spread=0.7)
    points, _ = points_of(x, spherical)
    start = first_centers(points, 30, 5, "random", ALONE)
    made, owner = cluster(x, start, clusters=30, iterations=8, engine=engine, spherical=spherical)
    wide = unit(x.astype(np.float64)) if spherical else x.astype(np.float64)
    centers, objective, truth = lloyd(wide, wide[start], 8, spherical)
    assert not any(row["repaired"] for row in made.rows)  # plain Lloyd repairs none
    assert made.objective == pytest.approx(objective, rel=1e-4)
    assert made.centers == pytest.approx(centers, abs=1e-5)
    squared = distances(wide, centers)
    rows = np.arange(len(x))
    scale = (wide**2).sum(axis=1)
    assert (squared[rows, owner] - squared[rows, truth] <= MARGIN * scale).all()
    assert (owner == truth).mean() > 0.999


def test_engines_reach_the_same_from_the_same_seed():
    x = blobs(seed=1)
    made = [cluster(x, clusters=50, iterations=20, engine=e)[0] for e in ("gemm", "faiss")]
    one, other = (each.objective for each in made)
    assert one == pytest.approx(other, rel=1e-4)


def test_the_objective_never_rises_and_is_that_of_the_centers_it_is_told_of():
    x = blobs(seed=2)
    made, owner = cluster(x, clusters=40, iterations=30, seed=3)
    rows = made.rows
    told = [row["objective"] for row in rows]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(told))
    assert rows[-1]["final"]
    final = ((x.astype(np.float64) - made.centers.astype(np.float64)[owner]) ** 2).sum()
    assert told[-1] == pytest.approx(final, rel=1e-6)


@pytest.mark.parametrize("start", ["random", "kmeans++"])
def test_the_seed_is_all_that_matters(start):
    x = blobs(seed=4)
    made = [
        cluster(x, clusters=20, iterations=3, seed=s, start=start)[0].centers for s in (1, 1, 2)
    ]
    assert (made[0] == made[1]).all()
    assert (made[0] != made[2]).any()


def test_memory_for_a_part_of_the_centers_gives_the_same_bits():
    x = blobs(seed=5)
    whole, owner = cluster(x, clusters=30, iterations=6)
    parts, owner_too = cluster(x, clusters=30, iterations=6, memory_gib=8e-6)
    assert (whole.centers == parts.centers).all()
    assert (owner == owner_too).all()


def test_kmeans_plus_plus_begins_better_than_at_random():
    x = blobs(seed=6, spread=0.05)
    first = {
        start: np.mean(
            [
                cluster(x, clusters=40, iterations=1, seed=s, start=start)[0].rows[0]["objective"]
                for s in range(3)
            ]
        )
        for start in ("random", "kmeans++")
    }
    assert first["kmeans++"] < 0.5 * first["random"]


def test_the_best_restart_is_kept():
    x = blobs(seed=7)
    made, _ = cluster(x, clusters=40, iterations=10, restarts=4)
    final = [row["objective"] for row in made.rows if row.get("final")]
    assert len(final) == 4
    assert made.objective == min(final)
    wide = x.astype(np.float64)
    assert distances(wide, made.centers).min(axis=1).sum() == pytest.approx(min(final), rel=1e-6)


@pytest.mark.parametrize("spherical", [False, True])
def test_no_center_is_empty_where_there_are_as_many_distinct_points(spherical):
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((30, 6)).astype(np.float16)
    x = np.concatenate([kinds, kinds[rng.integers(3, size=2000)]])  # nearly all are three points
    for clusters in (30, 29, 10):
        made, owner = cluster(x, clusters=clusters, iterations=5, spherical=spherical)
        assert len(np.unique(owner)) == clusters
        assert distinct(made.centers) == clusters


def test_many_empty_centers_are_filled_a_part_at_a_time(monkeypatch):
    kinds = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float16)
    x = np.concatenate([kinds, kinds[:3].repeat(500, axis=0)])
    counts = []

    def counted(passes, keys, moved, ids):
        counts.append(len(moved))
        return improve(passes, keys, moved, ids)

    improve = lloyd_module.Passes.improve
    monkeypatch.setattr(lloyd_module.Passes, "improve", counted)
    monkeypatch.setattr(lloyd_module, "FILLED_AT_ONCE", 2 * 6)
    # three kinds to begin with, the other centers on top of them
    first = np.r_[np.arange(3), np.arange(30, 57)]
    _, owner = cluster(x, first, clusters=30, iterations=0)
    assert len(np.unique(owner)) == 30
    assert max(counts) == 2
    assert sum(counts) == 27


def test_a_sample_of_bad_rows_alone_leaves_the_first_centers_to_the_others():
    x = np.full((20_000, 2), np.nan, np.float16)
    x[[7, 9000]] = 1, 2
    x[9000] = 3
    for seed in range(4):
        made, _ = cluster(x, clusters=2, start="kmeans++", bad="skip", seed=seed)
        assert distinct(made.centers) == 2


def test_the_sample_of_kmeans_plus_plus_is_bounded(monkeypatch):
    taken = []

    def counted(points, rows):
        taken.append(len(rows))
        return take(points, rows)

    take = Points.take
    monkeypatch.setattr(Points, "take", counted)
    monkeypatch.setattr(draw, "PLUS_PLUS_NUMBERS", 24 * 1500)
    cluster(blobs(samples=3000), clusters=60, start="kmeans++", iterations=0)
    assert taken[0] == 1500


def test_points_that_differ_in_their_last_bit_are_distinct():
    x = np.ones((64, 3), np.float16)
    x[:, 0] = np.arange(1024, 1088).astype(np.float16) / 1024
    _, owner = cluster(x, clusters=64, iterations=4)
    assert len(np.unique(owner)) == 64


@pytest.mark.parametrize("start", ["random", "kmeans++"])
@pytest.mark.parametrize("spherical", [False, True])
def test_fewer_distinct_points_than_centers_are_refused_with_both_numbers(start, spherical):
    x = np.repeat(np.eye(5, 8, dtype=np.float16), 40, axis=0)
    if spherical:
        x[::2] *= 2  # the same directions
    with pytest.raises(ConfigError, match=r"clusters=6: 5 distinct points among 200 .*clusters=5"):
        cluster(x, clusters=6, spherical=spherical, start=start)
    assert len(np.unique(cluster(x, clusters=5, spherical=spherical, start=start)[1])) == 5


def test_zero_and_minus_zero_are_one_point():
    x = np.zeros((10, 4), np.float16)
    x[5:] = -0.0
    with pytest.raises(ConfigError, match="1 distinct points"):
        cluster(x, clusters=2)


def bad_rows():
    x = blobs(samples=500, seed=8)
    x[17, 3], x[30, 0], x[99] = np.nan, np.inf, 0
    return x


def test_bad_rows_are_named_and_refused():
    with pytest.raises(LabelError, match=r"2 of 500 not finite \(row 17, row 30\).*bad=skip"):
        cluster(bad_rows(), clusters=10)
    with pytest.raises(LabelError, match=r"1 of 500 of length zero.*\(row 99\)"):
        cluster(bad_rows(), clusters=10, spherical=True)


@pytest.mark.parametrize("policy", ["refuse", "skip"])
def test_features_in_memory_are_float16_or_refused(policy):
    with pytest.raises(
        InputError, match=r"features: \(3000, 24\) float32; allowed: \(S, F\) float16"
    ):
        cluster(blobs().astype(np.float32), clusters=5, bad=policy)


def test_skipped_bad_rows_change_nothing_for_the_others():
    x = bad_rows()
    points, _ = points_of(x, policy="skip")
    assert (points.bad.tolist(), points.usable) == ([17, 30], 498)
    start = first_centers(points, 10, 0, "random", ALONE)
    made, owner = cluster(x, start, clusters=10, iterations=4, bad="skip")
    good = np.delete(x, [17, 30], axis=0)
    shifted = start - (start > 17) - (start > 30)
    clean, clean_owner = cluster(good, shifted, clusters=10, iterations=4)
    assert (made.centers == clean.centers).all()
    assert owner[[17, 30]].tolist() == [-1, -1]
    assert (np.delete(owner, [17, 30]) == clean_owner).all()


def test_giants_are_split_where_that_is_wanted():
    rng = np.random.default_rng(0)
    dense = 0.01 * rng.standard_normal((3000, 8))
    sparse = 50 + 5 * rng.standard_normal((300, 8))
    x = np.concatenate([dense, sparse]).astype(np.float16)
    first = np.arange(2999, 3059)  # one of the dense points
    sizes = {
        largest: np.bincount(cluster(x, first, clusters=60, iterations=12, largest=largest)[1])
        for largest in (0.0, 4.0)
    }
    sizes = {largest: counts.max() for largest, counts in sizes.items()}
    assert sizes[0.0] > 2000
    assert sizes[4.0] < 1000


@pytest.mark.parametrize(
    ("split", "tolerance", "ends"),
    [(1, 0.0, False), (1, 0.1, False), (0, 0.0, False), (0, 0.1, True)],
)
def test_a_rise_ends_a_run_only_where_it_is_no_splits_and_a_tolerance_is_set(
    split, tolerance, ends
):
    row = {"restart": 0, "repaired": 0, "split": 0, "moved": 0.5}
    state = MemoryState(4, 2, 1)
    state.progress.iteration = 2
    state.progress.rows = [
        {**row, "iteration": 0, "objective": 1.0, "split": split},
        {**row, "iteration": 1, "objective": 1.5},
    ]
    config = ClusterConfig(clusters=2, top=1, tolerance=tolerance)
    points, _ = points_of(np.ones((4, 1), np.float16))
    layout = make_layout(ALONE, 4, 2, 1, 1.0, 1)
    passes = Passes(points, layout, 2, "gemm", 1.0, print)
    assert Lloyd(points, config, passes, state, print)._converged() is ends


def test_large_numbers_do_not_overflow_the_sums():
    x = (blobs(samples=2000, seed=9).astype(np.float32) * 8000).astype(np.float16)
    assert np.isfinite(x).all()
    start = first_centers(points_of(x)[0], 20, 0, "random", ALONE)
    made, _ = cluster(x, start, clusters=20, iterations=5)
    wide = x.astype(np.float64)
    centers, objective, _ = lloyd(wide, wide[start], 5, spherical=False)
    assert made.centers == pytest.approx(centers, rel=1e-5, abs=1e-2)
    assert made.objective == pytest.approx(objective, rel=1e-4)


def test_one_point_one_center():
    made, owner = cluster(np.ones((1, 3), np.float16), clusters=1)
    assert made.centers.tolist() == [[1, 1, 1]]
    assert owner.tolist() == [0]


def test_a_tolerance_ends_it_early_and_so_does_standing_still():
    x = blobs(seed=10)
    rows = cluster(x, clusters=40, iterations=100)[0].rows
    assert rows[-2]["moved"] == 0
    assert len(rows) < 80
    assert len(cluster(x, clusters=40, iterations=100, tolerance=0.05)[0].rows) < len(rows)


@pytest.mark.parametrize("samples", [1, 2, 3, 100, 1025])
def test_a_row_order_is_a_permutation_that_the_seed_decides(samples):
    order = RowOrder(samples, 1)
    whole = order(0, samples)
    assert sorted(whole.tolist()) == list(range(samples))
    if samples > 10:
        assert (order(7, 5) == whole[7:12]).all()
        assert (RowOrder(samples, 2)(0, samples) != whole).any()
