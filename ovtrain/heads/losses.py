"""Losses as pure functions of logits and positives.

B samples, S class rows (the local part of the drawn ones), l positives per sample.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def logistic(logits: Tensor, positive: Tensor) -> Tensor:
    """Paper eq. 9 per sample: sum over centers of log(1 + exp(-y s)), y = +1 on positives, else -1.

    logits (B, S); positive (B, S) bool. Returns (B,): the sum over the rows given, so that partial
    sums of class shards add up to the whole.
    """
    return softplus(logits.where(~positive, -logits)).sum(1)
