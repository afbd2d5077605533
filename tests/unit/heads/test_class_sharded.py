"""A head's plan, rows and start, without other ranks."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ovtrain.config.head import HeadConfig
from ovtrain.distributed.mesh import make_mesh
from ovtrain.heads import draw
from ovtrain.heads.class_sharded import ClassShardedHead
from ovtrain.heads.draw import distinct, draw_rows, drawn_positives, hash_rows
from ovtrain.heads.initial import initial_rows
from ovtrain.heads.multi_source import HeadStep, MultiSource
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import CentroidStore
from tests.helpers.training import world

CONFIG = HeadConfig(sample_rate=0.1)
NOTHING = np.full((1, 1), -1, np.int32)


def make(classes: int, rank: int = 0, ranks: int = 1, name: str = "v", **changes):
    config = replace(CONFIG, **changes)
    return ClassShardedHead(name, classes, 8, config, world(rank, ranks), seed=3)


@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("rows", ["fp32", "bf16"])
def test_rows_and_draw_do_not_depend_on_the_sharding(ranks: int, rows: str):
    one = make(3000, rows=rows)
    parts = [make(3000, rank, ranks, rows=rows) for rank in range(ranks)]
    assert torch.equal(torch.cat([head.rows for head in parts]), one.rows)
    labels = [np.array([[5, 2999, 1500, -1]], np.int32)]
    for step in (0, 1, 17):
        ids = np.concatenate([head.plan(step, labels).ids for head in parts])
        assert ids.tolist() == one.plan(step, labels).ids.tolist()


def test_every_positive_of_all_micro_steps_is_drawn():
    head = make(3000, sample_rate=0.01)
    labels = [np.array([[5, 5, 17]], np.int32), np.array([[2000, -1, -1], [5, 6, 7]], np.int32)]
    for step in range(20):
        plan = head.plan(step, labels)
        assert {5, 6, 7, 17, 2000} <= set(plan.ids.tolist())
        assert set(plan.ids[plan.always].tolist()) == {5, 6, 7, 17, 2000}
        assert plan.count == 3


def test_the_draw_is_the_asked_share_and_changes_every_step():
    head = make(20000)
    draws = [
        set(draw_rows(0, 20000, step, 0.1, np.empty(0, np.int64)).tolist()) for step in range(4)
    ]
    for drawn in draws:  # binomial: 2000 +- 42; five standard deviations
        assert abs(len(drawn) - 2000) < 5 * 42
    for a, b in pairwise(draws):  # independent draws share a tenth: 200 +- 13
        assert abs(len(a & b) - 200) < 5 * 14
    one = [np.array([[3]], np.int32)]
    assert set(head.plan(0, one).ids) != set(head.plan(1, one).ids)


def test_heads_of_other_sources_draw_other_rows():
    one = [np.array([[3]], np.int32)]
    a, b = make(5000, name="video"), make(5000, name="image")
    assert len(set(a.plan(0, one).ids) & set(b.plan(0, one).ids)) < 100  # independent: 50 +- 7
    assert not torch.equal(a.rows, b.rows)


def test_a_step_without_labels_draws_nothing():
    assert len(make(500).plan(0, [NOTHING]).ids) == 0


def test_hash_rows_is_uniform():
    x = torch.from_numpy(hash_rows(np.arange(100_000), 7) / 2.0**53)
    counts = torch.histc(x, bins=10, min=0, max=1)
    assert 0 <= x.min() <= x.max() < 1
    assert (counts - 10_000).abs().max() < 5 * 95  # binomial standard deviation 95


@pytest.mark.skipif(draw.native() is None, reason="extension not built")
def test_the_native_draw_is_that_of_numpy(monkeypatch: pytest.MonkeyPatch):
    always = np.array([10, 11, 5000, 9999])
    for rate in (0.003, 0.1, 0.77):
        found = draw_rows(10, 10000, 2**62 + 5, rate, always)
        with monkeypatch.context() as patched:
            patched.setattr(draw, "native", lambda: None)
            wanted = draw_rows(10, 10000, 2**62 + 5, rate, always)
        assert found.tolist() == wanted.tolist()


def test_repeated_labels_are_one_label():
    table = np.array([[3, 1, 3, 3], [-1, -1, 2, 2]], np.int32)
    assert sorted(distinct(table)[0].tolist()) == [-1, -1, 1, 3]
    assert (distinct(table) >= 0).sum(1).tolist() == [2, 1]


def test_some_positives_of_each_sample_are_drawn_anew():
    table = distinct(np.tile(np.arange(10, dtype=np.int32), (50, 1)) + 10 * np.arange(50)[:, None])
    table = table.astype(np.int32)
    first, second = (drawn_positives(table, 8, seed) for seed in (1, 2))
    assert (first.sum(1) == 8).all()
    assert 0 < (first != second).mean() < 0.5
    short = np.array([[4, 9, -1]], np.int32)
    assert drawn_positives(short, 2, 5).tolist() == [[True, True, False]]


def test_initial_rows_are_normal_and_depend_on_the_global_row():
    config = HeadConfig()
    rows = initial_rows(config, range(3000), 16, 5, classes=3000)
    assert rows.std().item() == pytest.approx(0.01, rel=0.02)
    part = initial_rows(config, range(1500, 2100), 16, 5, classes=3000)
    assert torch.equal(part, rows[1500:2100])
    assert initial_rows(config, range(7, 7), 16, 5, classes=3000).shape == (0, 16)
    assert len(torch.unique(rows[:, 0])) > 2900  # no block repeats another


def test_centroids_start_the_rows_at_the_length_of_normal_ones(tmp_path: Path):
    centroids = np.random.default_rng(0).normal(size=(2500, 8)).astype(np.float32) * 7
    CentroidStore(centroids, "teacher").write(tmp_path)
    config = HeadConfig(init="centroids")
    whole = initial_rows(config, range(2500), 8, 0, classes=2500, centroids=str(tmp_path))
    part = initial_rows(config, range(900, 2100), 8, 0, classes=2500, centroids=str(tmp_path))
    assert torch.equal(part, whole[900:2100])
    lengths = whole.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.01 * 8**0.5))
    unit = torch.nn.functional.normalize(torch.from_numpy(centroids))
    torch.testing.assert_close(torch.nn.functional.normalize(whole), unit)


@pytest.mark.parametrize(("classes", "width"), [(10, 16), (11, 8)])
def test_centroids_of_another_shape_are_refused(tmp_path: Path, classes: int, width: int):
    CentroidStore(np.zeros((10, 8), np.float32), "t").write(tmp_path)
    config = HeadConfig(init="centroids")
    with pytest.raises(LabelError, match="10 centroids of width 8") as caught:
        initial_rows(config, range(classes), width, 0, classes=classes, centroids=str(tmp_path))
    assert f"of width {width}" in str(caught.value)


def step_of(head: ClassShardedHead, labels: np.ndarray, pooled: torch.Tensor):
    plan = head.plan(0, [labels])
    step = HeadStep(head, 1.0, plan, head.take(plan))
    rows = [torch.arange(len(pooled))]
    return step, MultiSource(make_mesh(world(), 1)).micro_step(pooled, [step], 0, rows, len(pooled))


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 0.0])
@pytest.mark.parametrize("loss", ["logistic", "margin_softmax", "mlcd"])
def test_an_embedding_without_a_direction_takes_no_part(loss: str, value: float):
    head = make(50, sample_rate=1.0, loss=loss)
    labels = np.array([[1, 2], [3, 4], [5, 6]], np.int32)
    pooled = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    sound, wanted = step_of(make(50, sample_rate=1.0, loss=loss), labels, pooled)
    pooled[1] = value
    step, found = step_of(head, labels, pooled)
    assert found.sound.tolist() == [True, False, True]
    assert found.losses.isfinite().all()
    assert not found.gradient[1].any()
    assert torch.equal(found.gradient[[0, 2]], wanted.gradient[[0, 2]])
    assert step.head.gradient_squares(step.rows).isfinite()
    assert step.rows.gradient[:50].isfinite().all()
    assert not torch.equal(step.rows.gradient[:50], sound.rows.gradient[:50])


def test_a_positive_is_never_a_negative():
    """A row that is only positive has a gradient that points away from its sample's embedding."""
    head = make(50, sample_rate=1.0)
    labels = np.array([[7, 7, 30, 11]], np.int32)
    pooled = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    step, _ = step_of(head, labels, pooled)
    along = (step.rows.gradient[:50] @ pooled[0]).sign()
    expected = torch.ones(50)
    expected[[7, 30, 11]] = -1
    assert torch.equal(along, expected)


def test_more_ranks_than_classes_leave_empty_shards():
    heads = [make(3, rank, 5) for rank in range(5)]
    assert sorted(len(head.rows) for head in heads) == [0, 0, 1, 1, 1]
    plan = heads[0].plan(0, [np.array([[1]], np.int32)])
    assert plan.ids.tolist() == []
    assert heads[0].take(plan).unit.shape == (256, 8)
    assert not heads[0].take(plan).unit.any()


@pytest.mark.parametrize("label", [50, -7])
def test_a_label_that_is_no_class_is_refused(label: int):
    with pytest.raises(LabelError, match="source v: labels from") as caught:
        make(50).plan(0, [np.array([[3, label]], np.int32)])
    assert "0 to 49" in str(caught.value)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_centroid_without_a_direction_is_named(tmp_path: Path, value: float):
    centroids = np.ones((10, 8), np.float32)
    centroids[7] = value
    CentroidStore(centroids, "t").write(tmp_path)
    config = HeadConfig(init="centroids")
    with pytest.raises(LabelError, match="centroid 7 is zero or not finite"):
        initial_rows(config, range(5, 10), 8, 0, classes=10, centroids=str(tmp_path))


def test_a_hundred_tags_that_repeat_cyclically_are_as_many_as_differ():
    """What an OCR source has: up to 100 tags, lists filled up by repetition."""
    head = make(300, sample_rate=1.0)
    few = np.random.default_rng(0).permutation(300)[:37].astype(np.int32)
    pooled = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    labels = np.stack([np.resize(few, 100), np.arange(100)]).astype(np.int32)
    bare = np.full((2, 100), -1, np.int32)
    bare[0, :37], bare[1] = few, labels[1]
    (_, found), (_, wanted) = (
        step_of(head, labels, pooled),
        step_of(make(300, sample_rate=1.0), bare, pooled),
    )
    assert torch.equal(found.losses, wanted.losses)
    assert torch.equal(found.gradient, wanted.gradient)
