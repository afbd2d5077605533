"""Probe section: frozen encoders on the classes of a prepared data set."""

from __future__ import annotations

from dataclasses import dataclass, field

from ovtrain.config.rules import NOT_NEGATIVE, POSITIVE, broken


@dataclass(frozen=True)
class ProbeConfig:
    """``runs``: run directories of the trained encoders, one per seed; ``shuffled``: the control
    run on shuffled labels ("" = none); ``classes``: {"classes": [names], "labels": {clip stem:
    class}}. ``labels_per_class``: labelled clips per class that the probes may see (0 = all)."""

    out: str = ""
    train_shards: str = ""
    heldout_shards: str = ""
    heldout_labels: str = ""
    classes: str = ""
    runs: list[str] = field(default_factory=list[str])
    shuffled: str = ""
    source: str = "video"
    token_budget: int = 2048
    chunks: int = 8
    cache_dir: str = ""
    labels_per_class: int = 0
    epochs: int = 10
    batch: int = 32
    attentive_lr: float = 1e-3
    bf16: bool = False
    workers: int = 2

    def problems(self) -> list[str]:
        found: list[str] = []
        for key in ("out", "train_shards", "heldout_shards", "classes"):
            if not getattr(self, key):
                found.append(f"{key} is empty; name a path")
        if not self.runs:
            found.append("runs is empty; name at least one run directory")
        counts = ("token_budget", "chunks", "epochs", "batch", "workers", "attentive_lr")
        return found + broken(self, "", {POSITIVE: counts, NOT_NEGATIVE: ("labels_per_class",)})
