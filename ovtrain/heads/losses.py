"""The losses as pure functions of cosines: dense, differentiable, of any float dtype.

They are the reference of the streamed ones in ``streaming.py``, which never hold all cosines, and
share with them what is computed from a sample's sums (``margin_terms``, ``mlcd_terms``).

B samples, S class rows, l positives per sample. ``positive`` (B, S) marks a sample's own centers,
which are never its negatives; ``weight`` (S,) is the number of centers that a row stands for as a
negative (1 when every center is there, 1 / rate for a drawn one). Each function returns (B,).

Over draws of rows, ``logistic`` with those weights is an unbiased estimate of the loss over all
centers, and so are its gradients: it is a sum over rows. The two others take a logarithm of such a
sum: the sum is unbiased, its logarithm lies below on average (Jensen), by half its relative
variance, and reaches the dense one as rows are added: they are consistent only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ovtrain.config.head import HeadConfig


def logistic(
    cosines: Tensor, positive: Tensor, weight: Tensor, *, scale: float, bias: float
) -> Tensor:
    """Paper eq. 9: sum over centers of log(1 + exp(-y s)), s = scale * cosine + bias, y = +1 on
    positives, else -1."""
    s = scale * cosines + bias
    return torch.where(positive, softplus(-s), weight * softplus(s)).sum(1)


def margin_softmax(
    cosines: Tensor,
    positive: Tensor,
    weight: Tensor,
    *,
    scale: float,
    margin: float,
    interclass_filter: float,
) -> Tensor:
    """CosFace (Wang et al., 2018) for several positives: the sum over them of a softmax against the
    negatives, which they share. Negative cosines above ``interclass_filter`` count as 0."""
    total = _log_sum(cosines.masked_fill(cosines > interclass_filter, 0.0), positive, weight, scale)
    s = scale * (cosines - margin)
    return torch.where(positive, softplus(total[:, None] - s), 0.0).sum(1)


def mlcd(
    cosines: Tensor, positive: Tensor, weight: Tensor, *, scale: float, margin: float
) -> Tensor:
    """Multi-label cluster discrimination (An et al., 2024): log(1 + sum over negatives of exp(s)) +
    log(1 + sum over positives of exp(-s)), the margin taken from positives."""
    s = scale * (cosines - margin)
    pull = torch.logsumexp(torch.where(positive, -s, float("-inf")), 1)
    return softplus(_log_sum(cosines, positive, weight, scale)) + softplus(pull)


def _log_sum(cosines: Tensor, positive: Tensor, weight: Tensor, scale: float) -> Tensor:
    """(B,) log of the weighted sum over negatives of exp(scale * cosine)."""
    s = scale * cosines + weight.log()
    return torch.logsumexp(s.masked_fill(positive, float("-inf")), 1)


def dense_loss(
    config: HeadConfig, cosines: Tensor, positive: Tensor, weight: Tensor | None = None
) -> Tensor:
    """() the loss of a batch that a resolved ``config`` asks for: the mean over the samples that
    have a positive."""
    weight = cosines.new_ones(cosines.shape[1]) if weight is None else weight
    fields = {
        "logistic": ("scale", "bias"),
        "margin_softmax": ("scale", "margin", "interclass_filter"),
        "mlcd": ("scale", "margin"),
    }[config.loss]
    function = {"logistic": logistic, "margin_softmax": margin_softmax, "mlcd": mlcd}[config.loss]
    per_sample = function(cosines, positive, weight, **{k: getattr(config, k) for k in fields})
    positives = positive.sum(1)
    if config.reduction == "positive":
        per_sample = per_sample / positives.clamp(min=1)
    return (per_sample * (positives > 0)).sum() / (positives > 0).sum().clamp(min=1)


def margin_terms(s: Tensor, peak: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From s (B, l) = scale * (cosine - margin) of the positives, -inf where there is none, and the
    negatives' sum exp(peak) * total (B,): loss (B,), push (B,), pull (B, l). The gradient of the
    loss is push * weight * exp(s - peak) at a negative's s, -pull at a positive's."""
    there = s > float("-inf")
    x = (peak + total.log())[:, None] - s
    loss = torch.where(there, softplus(x), 0.0).sum(1)
    pull = torch.where(there, torch.sigmoid(x), 0.0)
    return loss, pull.sum(1) / total.clamp(min=torch.finfo(total.dtype).tiny), pull


def mlcd_terms(s: Tensor, peak: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As ``margin_terms``, for ``mlcd``."""
    there = s > float("-inf")
    inverse = torch.logsumexp(torch.where(there, -s, float("-inf")), 1)
    loss = softplus(peak + total.log()) + softplus(inverse)
    pull = torch.where(there, torch.exp(-s - softplus(inverse)[:, None]), 0.0)
    return loss, 1 / (total + torch.exp(-peak)), pull
