"""Guards section: what a run does when something goes wrong in it."""

from __future__ import annotations

from dataclasses import dataclass

from ovtrain.config.rules import NOT_NEGATIVE, POSITIVE, broken, not_among

ON_NONFINITE = ("stop", "skip")
ON_SPIKE = ("off", "warn", "stop")
FIRST_STEP = 10
"""The first step of a process compiles, allocates and warms caches: so many times the limit."""


@dataclass(frozen=True)
class GuardConfig:
    """on_nonfinite      a loss, embedding or gradient that is no finite number: ``stop`` before the
                      update and name the samples, or ``skip`` the step and count it
    max_skipped       skipped steps in a row that stop the run
    on_spike          a loss far above the expected: ``warn``, or ``stop`` once it stays there
    spike_deviations  how far: deviations of the last losses around their trend
    step_timeout_s    a step that takes longer leaves the stacks of all threads of all ranks in
                      ``logs/``; 0 = never. The first step has ten times as long
    save_timeout_s    the same for loading and saving (also never where step_timeout_s is 0)
    end_hung          after twice that time the process ends with status 75, to be started again
    slow_rank         a rank whose own time per step is beyond so many medians is named
    gc_every          steps from one garbage collection of all ranks to the next; 0 = Python's own
    """

    on_nonfinite: str = "stop"
    max_skipped: int = 10
    on_spike: str = "warn"
    spike_deviations: float = 8.0
    step_timeout_s: float = 1800.0
    save_timeout_s: float = 3600.0
    end_hung: bool = True
    slow_rank: float = 1.5
    gc_every: int = 500

    @property
    def longest_s(self) -> float:
        """Seconds after which this section has ended whatever hangs; 0: never."""
        return 2 * max(FIRST_STEP * self.step_timeout_s, self.save_timeout_s)

    def problems(self) -> list[str]:
        choices = {"on_nonfinite": ON_NONFINITE, "on_spike": ON_SPIKE}
        rules = {
            POSITIVE: ("max_skipped", "spike_deviations", "save_timeout_s", "slow_rank"),
            NOT_NEGATIVE: ("step_timeout_s", "gc_every"),
        }
        return not_among(self, "guards.", choices) + broken(self, "guards.", rules)
