"""Head section: the class-sharded sampled head and its loss (paper eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass

from ovtrain.config.rules import FINITE, POSITIVE, SHARE, broken, not_among

LOSSES = ("logistic",)
REDUCTIONS = ("positive", "sample")


@dataclass(frozen=True)
class HeadConfig:
    """logit = scale * cos(e, c) + bias; ``bias: null`` means log(10 / S), S the sampled centers.

    ``reduction``: "positive" = mean over samples of (sum over sampled centers / the sample's
    positives); "sample" = mean over samples of the sum over sampled centers. ``sample_rate`` is the
    share of centers drawn per step (1.0 = all); all positives of the batch are always kept.
    """

    loss: str = "logistic"
    sample_rate: float = 0.1
    scale: float = 10.0
    bias: float | None = None
    reduction: str = "positive"
    init_std: float = 0.01

    def problems(self) -> list[str]:
        rules = {SHARE: ("sample_rate",), POSITIVE: ("scale", "init_std"), FINITE: ("bias",)}
        choices = {"loss": LOSSES, "reduction": REDUCTIONS}
        return broken(self, "head.", rules) + not_among(self, "head.", choices)
