"""Head section: the class-sharded sampled head and its loss (paper eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass

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
        found: list[str] = []
        if self.loss not in LOSSES:
            found.append(f"head.loss={self.loss}; allowed: {', '.join(LOSSES)}")
        if self.reduction not in REDUCTIONS:
            found.append(f"head.reduction={self.reduction}; allowed: {', '.join(REDUCTIONS)}")
        if not 0 < self.sample_rate <= 1:
            found.append(f"head.sample_rate={self.sample_rate}; allowed: above 0 to 1")
        if self.scale <= 0:
            found.append(f"head.scale={self.scale}; allowed: above 0")
        return found
