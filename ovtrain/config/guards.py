"""Guards section: what a run does when something goes wrong in it."""

from __future__ import annotations

from dataclasses import dataclass

from ovtrain.config.rules import POSITIVE, broken, not_among

ON_NONFINITE = ("stop", "skip")
ON_SPIKE = ("off", "warn", "stop")


@dataclass(frozen=True)
class GuardConfig:
    """on_nonfinite     a loss, embedding or gradient that is no finite number: ``stop`` before the
                     update and name the samples, or ``skip`` the step and count it
    max_skipped      skipped steps in a row that stop the run
    """

    on_nonfinite: str = "stop"
    max_skipped: int = 10

    def problems(self) -> list[str]:
        found = not_among(self, "guards.", {"on_nonfinite": ON_NONFINITE})
        return found + broken(self, "guards.", {POSITIVE: ("max_skipped",)})
