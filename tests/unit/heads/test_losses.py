"""The logistic loss of eq. 9."""

import math

import pytest
import torch

from ovtrain.config.head import HeadConfig
from ovtrain.heads.class_sharded import ClassShardedHead, init_rows
from ovtrain.heads.losses import logistic
from tests.helpers.training import world


def test_it_is_the_sum_over_centers_of_log_1_plus_exp_minus_y_s():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    positive = torch.tensor([[True, False, False]])
    expected = sum(math.log1p(math.exp(x)) for x in (-2.0, -1.0, 0.5))
    assert logistic(logits, positive).item() == pytest.approx(expected)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4]])
    for positive in ([[True, False]], [[False, True]]):
        assert torch.isfinite(logistic(logits, torch.tensor(positive))).all()


def test_parts_over_rows_add_up():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 10, generator=generator)
    positive = torch.rand(4, 10, generator=generator) < 0.2
    parts = logistic(logits[:, :3], positive[:, :3]) + logistic(logits[:, 3:], positive[:, 3:])
    torch.testing.assert_close(parts, logistic(logits, positive))


def test_the_default_bias_starts_negatives_where_the_ratio_says():
    head = ClassShardedHead("v", 1000, 8, HeadConfig(sample_rate=0.1), world(), seed=0)
    assert head.sampled == 100
    assert head.bias == pytest.approx(math.log(10 / 100))
    given = ClassShardedHead("v", 10, 8, HeadConfig(bias=-3.0), world(), seed=0)
    assert given.bias == -3.0


def test_initial_rows_are_normal_and_depend_on_the_global_row():
    rows = init_rows(0, 3000, 16, 0.01, seed=5)
    assert rows.std().item() == pytest.approx(0.01, rel=0.02)
    assert torch.equal(init_rows(1500, 2100, 16, 0.01, seed=5), rows[1500:2100])
    assert init_rows(7, 7, 16, 0.01, seed=5).shape == (0, 16)
    assert len(torch.unique(rows[:, 0])) > 2900  # no block repeats another


def test_scores_are_cosines_with_the_local_rows():
    head = ClassShardedHead("v", 5, 8, HeadConfig(), world(), seed=0)
    scores = head.scores(head.rows * 3)
    torch.testing.assert_close(scores.diagonal(), torch.ones(5))


def test_no_labelled_sample_gives_loss_zero_and_finite_gradients():
    head = ClassShardedHead("v", 5, 8, HeadConfig(sample_rate=1.0), world(), seed=0)
    labels = torch.full((2, 1), -1)
    z = torch.randn(2, 8, requires_grad=True)
    ids = head.draw(0, labels)
    rows = head.take(ids)
    loss = head.loss(z, labels, rows, ids, 0)
    loss.backward()
    assert loss.item() == 0
    assert not z.grad.any()
    assert not rows.grad.any()
