"""Linear probe: multinomial logistic regression on one vector per clip.

Features are standardised by the training clips; the L2 weight is chosen on a fifth of the training
clips, never on the held-out ones. S clips, D width, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

L2_WEIGHTS = (1e-3, 1e-2, 1e-1)
ROUNDING = 5e-4
"""Of the features' size: float32 encoders leave a tenth of it of inputs that are equal."""


def linear_probe(
    train: Tensor, train_labels: Tensor, test: Tensor, classes: int, seed: int = 0
) -> Tensor:
    """(S_test,) predicted classes."""
    mean, std = train.mean(0), train.std(0)
    # A spread of rounding errors is no feature: standardised, it would decide between classes.
    told = std > ROUNDING * mean.square().mean().sqrt()
    train, test = ((x - mean) / (std + 1e-6) * told for x in (train, test))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held, fit = order[: len(train) // 5], order[len(train) // 5 :]
    scores: list[float] = []
    for l2 in L2_WEIGHTS:
        found = _predict(_fit(train[fit], train_labels[fit], classes, l2), train[held])
        scores.append((found == train_labels[held]).float().mean().item())
    best = L2_WEIGHTS[max(range(len(scores)), key=scores.__getitem__)]
    return _predict(_fit(train, train_labels, classes, best), test)


def _fit(x: Tensor, y: Tensor, classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Weight (D, K) and bias (K,), fitted by L-BFGS from zero: deterministic."""
    weight = torch.zeros(x.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(x @ weight + bias, y) + l2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()


def _predict(classifier: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    weight, bias = classifier
    return (x @ weight + bias).argmax(1)
