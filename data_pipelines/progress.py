"""Progress of a step: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich import progress as bars

PLAIN_EVERY_S = 10.0


class Progress:
    """Counts pieces of work under a name; ``total`` None where it is not known."""

    def __init__(self, name: str, total: int | None, unit: str = "files") -> None:
        self._name, self._total, self._done, self._unit = name, total, 0, unit
        self._last = time.monotonic()
        self._bar: bars.Progress | None = None
        if sys.stdout.isatty():
            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.MofNCompleteColumn(),
                bars.TimeRemainingColumn(),
            )
            self._task = self._bar.add_task(name, total=total)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._line()

    def advance(self) -> None:
        self._done += 1
        if self._bar:
            self._bar.advance(self._task)
        elif time.monotonic() - self._last > PLAIN_EVERY_S:
            self._last = time.monotonic()
            self._line()

    def _line(self) -> None:
        of = "" if self._total is None else f" of {self._total}"
        print(f"{self._name}: {self._done}{of} {self._unit}", flush=True)
