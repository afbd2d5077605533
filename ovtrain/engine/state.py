"""TrainState: where a run stands. Plain values, so that it is its own checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainState:
    """step              optimizer updates done
    consumed          samples read per source
    views             samples per view so far
    filled            tokens that codec selection filled
    bad               unreadable samples by the category of their reason
    unlabelled        samples without labels
    skipped           steps that were left out because something in them was not finite
    skipped_in_a_row  the latest of them
    spikes            what the spike detector has seen
    """

    step: int = 0
    consumed: dict[str, int] = field(default_factory=dict[str, int])
    views: dict[str, int] = field(default_factory=dict[str, int])
    filled: int = 0
    bad: dict[str, int] = field(default_factory=dict[str, int])
    unlabelled: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    spikes: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def restore(self, saved: dict[str, Any]) -> None:
        for name in vars(self):
            setattr(self, name, saved[name])
