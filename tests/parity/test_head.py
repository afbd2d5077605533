"""The class-sharded sampled head against a dense float64 reference.

Tolerance: the head works in float32 on 32-element dot products of unit vectors (error about 1e-7)
times the scale 10, summed over about 100 logits: relative errors of 1e-6. 1e-5 leaves ten times
that.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ovtrain.config.head import HeadConfig
from ovtrain.heads.class_sharded import ClassShardedHead, hash_rows, init_rows
from tests.helpers.training import world

CLASSES, WIDTH, SAMPLES = 101, 32, 9
CONFIG = HeadConfig(sample_rate=0.3, init_std=0.5)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def heads(ranks: int, config: HeadConfig, classes: int = CLASSES) -> list[ClassShardedHead]:
    return [
        ClassShardedHead("video", classes, WIDTH, config, world(rank, ranks), seed=3)
        for rank in range(ranks)
    ]


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    """(9, 4): four labels, three, ..., and one sample (the last) without any."""
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randperm(CLASSES, generator=generator)[:4] for _ in range(SAMPLES)]
    table = torch.stack(rows).int()
    table[1:3, 3:] = -1
    table[-1] = -1
    return table


def sharded(ranks: int, config: HeadConfig, embeddings: Tensor, labels: Tensor, count: int):
    """Loss, dL/d(embeddings), dL/d(all rows), drawn ids: parts of all ranks put together."""
    embeddings = embeddings.clone().requires_grad_()
    loss, gradient, drawn = torch.zeros(()), torch.zeros(CLASSES, WIDTH), []
    for head in heads(ranks, config):
        ids = head.draw(5, labels)
        rows = head.take(ids)
        part = head.loss(embeddings, labels, rows, ids, count)
        part.backward()
        loss = loss + part.detach()
        assert rows.grad is not None or not len(ids)
        if rows.grad is not None:
            gradient[ids] = rows.grad
        drawn.append(ids)
    return loss, embeddings.grad, gradient, torch.cat(drawn)


def dense(config: HeadConfig, embeddings: Tensor, labels: Tensor, drawn: Tensor):
    """Eq. 9 written out sample by sample in float64, over the drawn rows."""
    z = embeddings.double().requires_grad_()
    rows = init_rows(0, CLASSES, WIDTH, config.init_std, heads(1, config)[0].seed).double()
    rows.requires_grad_()
    bias = math.log(10 / max(1, round(config.sample_rate * CLASSES)))
    total, counted = torch.zeros((), dtype=torch.float64), 0
    for i in range(SAMPLES):
        own = [int(c) for c in labels[i] if c >= 0]
        if not own:
            continue
        counted += 1
        per_sample = torch.zeros((), dtype=torch.float64)
        for c in drawn.tolist():
            cosine = (z[i] @ rows[c]) / (z[i].norm() * rows[c].norm())
            y = 1 if c in own else -1
            per_sample = per_sample + torch.log1p(torch.exp(-y * (config.scale * cosine + bias)))
        total = total + per_sample / (len(own) if config.reduction == "positive" else 1)
    loss = total / counted
    loss.backward()
    return loss.detach(), z.grad, rows.grad


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("rate", "reduction"), [(1.0, "positive"), (0.3, "positive"), (0.3, "sample")]
)
def test_shards_add_up_to_the_dense_loss_and_gradients(embeddings, labels, ranks, rate, reduction):
    config = replace(CONFIG, sample_rate=rate, reduction=reduction)
    loss, to_embeddings, to_rows, drawn = sharded(ranks, config, embeddings, labels, count=8)
    if rate == 1:
        assert drawn.tolist() == list(range(CLASSES))
    expected = dense(config, embeddings, labels, drawn)
    for found, wanted in zip((loss, to_embeddings, to_rows), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, **CLOSE)


def test_micro_steps_add_up_to_one_step(embeddings, labels):
    """The count of labelled samples is the step's, so halves of the batch add up."""
    whole = sharded(2, CONFIG, embeddings, labels, count=8)
    (head,) = heads(1, CONFIG)
    ids = head.draw(5, labels)
    rows = head.take(ids)
    total = torch.zeros(())
    for part in (slice(0, 4), slice(4, None)):
        loss = head.loss(embeddings[part], labels[part], rows, ids, 8)
        loss.backward()
        total += loss.detach()
    gradient = torch.zeros(CLASSES, WIDTH)
    gradient[ids] = rows.grad
    torch.testing.assert_close(total, whole[0], **CLOSE)
    torch.testing.assert_close(gradient, whole[2], **CLOSE)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_rows_and_draw_do_not_depend_on_the_sharding(labels, ranks):
    (one,) = heads(1, CONFIG, classes=3000)
    parts = heads(ranks, CONFIG, classes=3000)
    assert torch.equal(torch.cat([head.rows for head in parts]), one.rows)
    for step in (0, 1, 17):
        ids = torch.cat([head.draw(step, labels) for head in parts])
        assert torch.equal(ids, one.draw(step, labels))


def test_every_positive_of_the_batch_is_drawn(labels):
    (head,) = heads(1, replace(CONFIG, sample_rate=0.01))
    positives = set(labels[labels >= 0].tolist())
    for step in range(20):
        assert positives <= set(head.draw(step, labels).tolist())


def test_a_positive_is_never_a_negative(embeddings, labels):
    """Were a positive also counted as a negative, moving it towards its sample could raise the
    loss; a
    row that is only positive has a gradient that points away from its sample's embedding."""
    (head,) = heads(1, replace(CONFIG, sample_rate=1.0))
    ids = head.draw(0, labels)
    rows = head.take(ids)
    head.loss(embeddings[:1], labels[:1], rows, ids, 1).backward()
    assert rows.grad is not None
    along = (rows.grad @ embeddings[0]).sign()
    expected = torch.ones(CLASSES)
    expected[labels[0].long()] = -1
    assert torch.equal(along, expected)


def test_the_draw_is_the_asked_share_and_changes_every_step():
    empty = torch.full((1, 1), -1, dtype=torch.int32)
    (head,) = heads(1, replace(CONFIG, sample_rate=0.1), classes=20000)
    draws = [set(head.draw(step, empty).tolist()) for step in range(4)]
    for draw in draws:  # binomial: 2000 +- 42; five standard deviations
        assert abs(len(draw) - 2000) < 5 * 42
    for a, b in pairwise(draws):  # independent draws share a tenth: 200 +- 13
        assert abs(len(a & b) - 200) < 5 * 14


def test_heads_of_other_sources_draw_other_rows():
    empty = torch.full((1, 1), -1, dtype=torch.int32)
    pair = [
        ClassShardedHead(name, 5000, 4, replace(CONFIG, sample_rate=0.1), world(), seed=0)
        for name in ("video", "image")
    ]
    draws = [set(head.draw(0, empty).tolist()) for head in pair]
    assert len(draws[0] & draws[1]) < 100  # independent: 50 +- 7
    assert not torch.equal(pair[0].rows, pair[1].rows)


def test_hash_rows_is_uniform():
    x = hash_rows(torch.arange(100_000), 7)
    counts = torch.histc(x, bins=10, min=0, max=1)
    assert 0 <= x.min() <= x.max() < 1
    assert (counts - 10_000).abs().max() < 5 * 95  # binomial standard deviation 95


def test_more_ranks_than_classes_leave_empty_shards(embeddings):
    config = replace(CONFIG, sample_rate=1.0)
    parts = [ClassShardedHead("v", 2, WIDTH, config, world(r, 4), seed=0) for r in range(4)]
    assert sorted(head.hi - head.lo for head in parts) == [0, 0, 1, 1]
    labels = torch.zeros(SAMPLES, 1, dtype=torch.int32)
    losses = []
    for head in parts:
        ids = head.draw(0, labels)
        losses.append(head.loss(embeddings, labels, head.take(ids), ids, SAMPLES))
    whole = ClassShardedHead("v", 2, WIDTH, config, world(), seed=0)
    ids = whole.draw(0, labels)
    expected = whole.loss(embeddings, labels, whole.take(ids), ids, SAMPLES)
    torch.testing.assert_close(torch.stack(losses).sum(), expected, **CLOSE)
