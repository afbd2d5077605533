"""The losses as formulas, and what sampling does to them."""

import math

import pytest
import torch
from torch import Tensor

from ovtrain.config.head import HeadConfig
from ovtrain.heads.losses import dense_loss, logistic, margin_softmax, mlcd

ROW = torch.tensor([[0.5, -0.2, 0.1, 0.9]])
OWN = torch.tensor([[True, False, False, False]])
ONES = torch.ones(4)


def test_logistic_is_the_sum_over_centers_of_log_1_plus_exp_minus_y_s():
    found = logistic(ROW, OWN, ONES, scale=3.0, bias=-0.5)
    s = [3 * c - 0.5 for c in ROW[0].tolist()]
    wanted = sum(math.log1p(math.exp(x)) for x in (-s[0], *s[1:]))
    assert found.item() == pytest.approx(wanted)


def test_margin_softmax_with_one_positive_is_cosfaces_cross_entropy():
    logits = 8.0 * (ROW - 0.3 * OWN)
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([0]))
    found = margin_softmax(ROW, OWN, ONES, scale=8.0, margin=0.3, interclass_filter=2.0)
    assert found.item() == pytest.approx(wanted.item())


def test_the_interclass_filter_puts_close_negatives_to_zero():
    filtered = ROW.clone()
    filtered[0, 3] = 0
    options = {"scale": 8.0, "margin": 0.3}
    found = margin_softmax(ROW, OWN, ONES, **options, interclass_filter=0.75)
    wanted = margin_softmax(filtered, OWN, ONES, **options, interclass_filter=2.0)
    assert found.item() == pytest.approx(wanted.item())


def test_mlcd_is_two_log_sums():
    own = torch.tensor([[True, False, False, True]])
    found = mlcd(ROW, own, ONES, scale=4.0, margin=0.1)
    negatives = math.exp(4 * -0.2) + math.exp(4 * 0.1)
    positives = math.exp(-4 * 0.4) + math.exp(-4 * 0.8)
    assert found.item() == pytest.approx(math.log1p(negatives) + math.log1p(positives))


def test_several_positives_share_the_negatives_and_are_none_of_them():
    own = torch.tensor([[True, False, False, True]])
    found = margin_softmax(ROW, own, ONES, scale=4.0, margin=0.0, interclass_filter=2.0)
    negatives = math.exp(4 * -0.2) + math.exp(4 * 0.1)
    wanted = sum(math.log1p(negatives / math.exp(4 * c)) for c in (0.5, 0.9))
    assert found.item() == pytest.approx(wanted)


@pytest.mark.parametrize("loss", ["logistic", "margin_softmax", "mlcd"])
def test_extreme_cosines_stay_finite(loss: str):
    config = HeadConfig(loss=loss, scale=1e3).resolved(4)
    for c in (1.0, -1.0):
        cosines = torch.full((1, 4), c, requires_grad=True)
        value = dense_loss(config, cosines, OWN)
        value.backward()
        assert value.isfinite()
        assert cosines.grad is not None
        assert cosines.grad.isfinite().all()


def test_the_mean_is_over_labelled_samples():
    config = HeadConfig(scale=2.0).resolved(4)
    cosines = torch.cat([ROW, -ROW, ROW])
    own = torch.cat([OWN, OWN, torch.zeros_like(OWN)])
    each = [dense_loss(config, cosines[i : i + 1], own[i : i + 1]) for i in (0, 1)]
    assert dense_loss(config, cosines, own).item() == pytest.approx(sum(each).item() / 2)


def draws(cosines: Tensor, own: Tensor, config: HeadConfig, count: int) -> tuple[Tensor, Tensor]:
    """Losses (count,) and mean gradient of the cosines, over draws at ``config.sample_rate``."""
    generator = torch.Generator().manual_seed(0)
    losses, gradient = [], torch.zeros_like(cosines)
    positives = own.any(0)
    for _ in range(count):
        kept = (torch.rand(len(positives), generator=generator) < config.sample_rate) | positives
        x = cosines.clone().requires_grad_()
        weight = torch.where(positives, 1.0, 1 / config.sample_rate).double()
        loss = dense_loss(config, x[:, kept], own[:, kept], weight[kept])
        loss.backward()
        losses.append(loss.detach())
        assert x.grad is not None
        gradient += x.grad / count
    return torch.stack(losses), gradient


@pytest.fixture
def setup() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    cosines = torch.rand(3, 300, generator=generator).double() * 1.6 - 0.8
    own = torch.rand(3, 300, generator=generator) < 0.02
    return cosines, own


def test_the_sampled_logistic_loss_is_unbiased(setup: tuple[Tensor, Tensor]):
    """Mean of 4,000 draws within five standard errors, and gradients entry by entry."""
    config = HeadConfig(sample_rate=0.1).resolved(300)
    losses, gradient = draws(*setup, config, 4000)
    x = setup[0].clone().requires_grad_()
    dense = dense_loss(config, x, setup[1])
    dense.backward()
    standard_error = losses.std() / math.sqrt(len(losses))
    assert standard_error < 0.01 * dense.item()
    assert abs(losses.mean() - dense.item()) < 5 * standard_error
    assert x.grad is not None
    wrong = (gradient - x.grad).abs()  # each entry: 0 or 10 times the gradient, with share 0.1
    assert (wrong <= 6 * x.grad.abs() * math.sqrt(9 / len(losses))).all()


@pytest.mark.parametrize("loss", ["margin_softmax", "mlcd"])
def test_the_logarithms_of_sampled_sums_are_consistent_only(
    setup: tuple[Tensor, Tensor], loss: str
):
    """Below the dense loss on average, and the gap closes in proportion as rates rise."""
    cosines, own = setup
    gaps = []
    for rate in (0.1, 0.4):
        config = HeadConfig(loss=loss, sample_rate=rate, scale=8.0, margin=0.2).resolved(300)
        losses, _ = draws(cosines, own, config, 2000)
        gaps.append((dense_loss(config, cosines, own) - losses.mean()).item())
        assert gaps[-1] > 3 * losses.std().item() / math.sqrt(2000)
    assert gaps[1] < 0.4 * gaps[0]
