"""Do a head's scores rank a held-out clip's pseudo-labels first? B clips, C centers, l labels
each."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_quality(scores: Tensor, labels: list[Tensor]) -> tuple[float, float]:
    """scores (B, C), labels one (l,) per clip -> (mean rank percentile of positives, AUC), both
    0..1.

    Percentile: share of the other centers that a positive outranks. AUC: probability that a
    positive outranks a negative of the same clip. 0.5 is chance for both. Clips without labels are
    left out.
    """
    percentiles: list[Tensor] = []
    areas: list[Tensor] = []
    for row, ids in zip(scores, labels, strict=True):
        if not len(ids):
            continue
        positive = torch.zeros(len(row), dtype=torch.bool)
        positive[ids.long()] = True
        order = row.argsort().argsort().float()  # 0 = lowest score
        percentiles.append(order[positive].mean() / (len(row) - 1))
        count = int(positive.sum())
        below = order[positive].sum() - count * (count - 1) / 2
        areas.append(below / (count * (len(row) - count)))
    return torch.stack(percentiles).mean().item(), torch.stack(areas).mean().item()
