"""Probes find what is there and nothing else; intervals and rankings equal their definitions."""

import pytest
import torch

from ovtrain.eval.attentive_probe import AttentiveProbe, attentive_probe
from ovtrain.eval.intervals import wilson
from ovtrain.eval.linear_probe import linear_probe
from ovtrain.eval.ranking import rank_quality


def blobs(count: int, seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes around three fixed points in 8 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centers = torch.eye(3, 8) * 4
    return centers[labels] + spread * torch.randn(count, 8, generator=generator), labels


def test_the_linear_probe_separates_what_is_separable_whatever_the_scale():
    train, labels = blobs(150, 0, 0.5)
    test, expected = blobs(60, 1, 0.5)
    scale = torch.logspace(-3, 3, 8)
    found = linear_probe(train * scale + 7, labels, test * scale + 7, 3)
    assert (found == expected).float().mean() > 0.97


def test_the_linear_probe_cannot_predict_random_labels():
    train, _ = blobs(150, 0, 0.5)
    test, _ = blobs(300, 1, 0.5)
    generator = torch.Generator().manual_seed(2)
    labels, expected = (torch.randint(0, 3, (n,), generator=generator) for n in (150, 300))
    found = linear_probe(train, labels, test, 3)
    assert abs((found == expected).float().mean().item() - 1 / 3) < 0.15


def test_the_attentive_probe_finds_one_telling_token_among_many():
    def clips(count: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        tokens = 0.3 * torch.randn(count, 6, 64, generator=generator)
        labels = torch.arange(count) % 2
        place = torch.randint(0, 6, (count,), generator=generator)
        tokens[torch.arange(count), place, labels] += 6
        return tokens, labels

    train, labels = clips(200, 0)
    test, expected = clips(80, 1)
    settings = {"heads": 2, "epochs": 8, "batch": 20, "lr": 3e-3, "seed": 0}
    found = attentive_probe(train.bfloat16(), labels, test.bfloat16(), 2, **settings)
    assert (found == expected).float().mean() > 0.9
    assert torch.equal(
        found, attentive_probe(train.bfloat16(), labels, test.bfloat16(), 2, **settings)
    )


def test_every_parameter_of_the_attentive_probe_is_initialised_from_the_seed():
    probes = [AttentiveProbe(64, 2, 3, seed=1) for _ in range(2)]
    for a, b in zip(probes[0].parameters(), probes[1].parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.isfinite(a).all()


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(0.5, 100, 0.4038, 0.5962), (0.9, 50, 0.7864, 0.9565), (0.0, 20, 0.0, 0.1611)],
)
def test_wilson_intervals(share, count, low, high):
    assert wilson(share, count) == pytest.approx((low, high), abs=2e-4)


def test_ranking_counts_pairs_of_positives_and_negatives():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20, 30, generator=generator)
    labels = [torch.randperm(30, generator=generator)[: 1 + i % 4] for i in range(20)]
    areas, shares = [], []
    for row, ids in zip(scores, labels, strict=True):
        positive = torch.zeros(30, dtype=torch.bool)
        positive[ids] = True
        areas.append((row[positive][:, None] > row[~positive]).float().mean())
        others = [(row[i] > row).float().sum() / 29 for i in ids]
        shares.append(torch.stack(others).mean())
    percentile, area = rank_quality(scores, labels)
    assert area == pytest.approx(torch.stack(areas).mean().item(), abs=1e-5)
    assert percentile == pytest.approx(torch.stack(shares).mean().item(), abs=1e-5)


def test_perfect_and_inverted_rankings_are_1_and_0():
    scores = torch.arange(10.0).repeat(2, 1)
    top, bottom = torch.tensor([8, 9]), torch.tensor([0, 1])
    assert rank_quality(scores, [top, torch.empty(0)])[1] == pytest.approx(1)
    assert rank_quality(scores, [bottom, bottom])[1] == pytest.approx(0, abs=1e-6)
