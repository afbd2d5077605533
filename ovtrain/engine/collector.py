"""Python's garbage collection at the same step on all ranks.

Left alone, each rank collects when its own count of objects says so, and all others wait for it in
the next collective: with 128 ranks most steps hold somebody's pause. Here all pause at once and
seldom, and look at little: what was there at the start is frozen.
"""

from __future__ import annotations

import gc


class StepCollector:
    """Automatic collection is off while this lives; ``after`` collects after every ``every``th
    step. ``every`` 0 leaves Python's collection alone. ``close`` restores what was found."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._was_enabled = gc.isenabled()
        if every:
            gc.disable()
            gc.collect()
            gc.freeze()

    def after(self, step: int) -> None:
        """``step``: updates done, the same number on all ranks."""
        if self.every and step % self.every == 0:
            gc.collect()

    def close(self) -> None:
        if not self.every:
            return
        gc.unfreeze()
        if self._was_enabled:
            gc.enable()
