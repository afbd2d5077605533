"""Head section: the class-sharded sampled head, its loss (paper eq. 9) and its optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ovtrain.config.rules import FINITE, NOT_NEGATIVE, POSITIVE, SHARE, broken, not_among

LOSSES = ("logistic", "margin_softmax", "mlcd")
REDUCTIONS = ("positive", "sample")
NEGATIVES = ("importance", "plain")
INITS = ("normal", "centroids")
OPTIMIZERS = ("adamw", "rowwise_adamw", "rowwise_adagrad")
DTYPES = ("fp32", "bf16")

DEFAULTS: dict[str, dict[str, float | str]] = {
    "logistic": {"scale": 10.0, "reduction": "positive"},
    "margin_softmax": {
        "scale": 64.0,
        "margin": 0.3,
        "interclass_filter": 0.75,
        "reduction": "positive",
    },
    "mlcd": {"scale": 64.0, "margin": 0.0, "reduction": "sample"},
}
"""What ``null`` means for each loss; a field that is not listed does not enter that loss."""


@dataclass(frozen=True)
class HeadConfig:
    """z = scale * cos(e, c), p the positives of a sample, n the sampled other centers.

    loss               ``logistic`` (paper eq. 9): sum over p of log(1 + exp(-z - bias)) + sum over
                       n of log(1 + exp(z + bias)). ``margin_softmax`` (CosFace): sum over p of
                       log(1 + sum over n of exp(z_n) / exp(z_p - scale * margin)). ``mlcd``:
                       log(1 + sum over n of exp(z)) + log(1 + sum over p of exp(-z + scale *
                       margin))
    sample_rate        share of the centers drawn per step (1 = all); positives are always kept
    scale, margin      null: 10 (logistic), 64 and 0.3 (margin_softmax), 64 and 0 (mlcd)
    bias               logistic alone; null: log(1 / C), C the classes of the source: at the start
                       all negatives together push about as hard as one positive pulls
    interclass_filter  margin_softmax alone: negative cosines above it count as 0; null: 0.75
    reduction          ``positive``: a sample's sum is divided by its positives; ``sample``: it is
                       not. Then the mean over samples. mlcd knows ``sample`` alone
    negatives          ``importance``: a drawn negative stands for the 1 / sample_rate it was drawn
                       from, so the loss estimates that of all centers; ``plain``: for itself
    positives_per_step  0 = all; else that many of a sample's positives are drawn anew each step,
                       and the rest takes no part in it
    init, init_std     rows ~ N(0, init_std), or the source's ``centroids``, scaled to as long
    rows, moments      stored as fp32 or bf16 (rounded stochastically); ``moments``: the first
    optimizer          ``adamw``; ``rowwise_adamw``: one second moment per row; ``rowwise_adagrad``:
                       one sum of squares per row and no first moment
    dense_updates      the reference mode: every row takes part in every step, untouched ones with a
                       gradient of zero. Costs memory and time in proportion to C
    """

    loss: str = "logistic"
    sample_rate: float = 0.1
    scale: float | None = None
    bias: float | None = None
    margin: float | None = None
    interclass_filter: float | None = None
    reduction: str | None = None
    negatives: str = "importance"
    positives_per_step: int = 0
    init: str = "normal"
    init_std: float = 0.01
    rows: str = "fp32"
    moments: str = "fp32"
    optimizer: str = "adamw"
    dense_updates: bool = False

    def problems(self) -> list[str]:
        rules = {
            SHARE: ("sample_rate",),
            POSITIVE: ("scale", "init_std"),
            FINITE: ("bias", "margin", "interclass_filter"),
            NOT_NEGATIVE: ("positives_per_step",),
        }
        choices = {
            "loss": LOSSES,
            "negatives": NEGATIVES,
            "init": INITS,
            "rows": DTYPES,
            "moments": DTYPES,
            "optimizer": OPTIMIZERS,
            "reduction": (None, *REDUCTIONS),
        }
        found = broken(self, "head.", rules) + not_among(self, "head.", choices)
        return found or self._without_effect()

    def _without_effect(self) -> list[str]:
        known = DEFAULTS[self.loss]
        found = [
            f"head.{key}={getattr(self, key)} does not enter head.loss={self.loss}; leave it null"
            for key in ("margin", "interclass_filter", "bias")
            if getattr(self, key) is not None
            and key not in known
            and not (key == "bias" and self.loss == "logistic")
        ]
        if self.loss == "mlcd" and self.reduction == "positive":
            found.append("head.reduction=positive; allowed with head.loss=mlcd: sample, or null")
        if self.optimizer == "rowwise_adagrad" and self.moments != "fp32":
            found.append("head.moments has no effect with head.optimizer=rowwise_adagrad")
        return found

    def resolved(self, classes: int) -> HeadConfig:
        """With every ``null`` replaced by what it means for this loss and ``classes`` centers."""
        values = {k: v for k, v in DEFAULTS[self.loss].items() if getattr(self, k) is None}
        if self.loss == "logistic" and self.bias is None:
            values["bias"] = -math.log(classes)
        return replace(self, **values)  # type: ignore[arg-type]
