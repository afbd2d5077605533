"""What the terminal shows while stages run: a live last line on a tty, else plain lines.

A plain line per stage start and end, and the job's last line at most every ``EVERY`` seconds.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

EVERY = 15.0


class Display(Protocol):
    def start(self, stage: str) -> None: ...

    def line(self, text: str) -> None: ...

    def end(self, stage: str, status: str, seconds: float) -> None: ...


class PlainDisplay:
    def __init__(self) -> None:
        self._shown = 0.0

    def start(self, stage: str) -> None:
        self._say(f"{stage}: started")
        self._shown = time.monotonic()

    def line(self, text: str) -> None:
        if text.strip() and time.monotonic() - self._shown >= EVERY:
            self._say(f"    {text.strip()[:160]}")
            self._shown = time.monotonic()

    def end(self, stage: str, status: str, seconds: float) -> None:
        self._say(ended(stage, status, seconds))

    def _say(self, text: str) -> None:
        print(text, flush=True)


class LiveDisplay:
    """A spinner with the stage, its running time and its last line (rich)."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console()
        self._status: Any = None
        self._stage, self._since = "", 0.0

    def start(self, stage: str) -> None:
        self._stage, self._since = stage, time.monotonic()
        self._status = self._console.status(stage)
        self._status.start()

    def line(self, text: str) -> None:
        from rich.markup import escape

        if self._status is not None and text.strip():
            room = max(self._console.width - len(self._stage) - 16, 20)
            seconds = time.monotonic() - self._since
            shown = escape(text.strip()[:room])
            self._status.update(f"[bold]{self._stage}[/] {seconds:.0f} s  [dim]{shown}[/]")

    def end(self, stage: str, status: str, seconds: float) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        color = {"failed": "red", "skipped": "dim"}.get(status, "green")
        self._console.print(ended(stage, status, seconds), style=color, highlight=False)


def ended(stage: str, status: str, seconds: float) -> str:
    if status == "skipped":
        return f"{stage:<22} unchanged, not run again ({seconds:.1f} s when it ran)"
    return f"{stage:<22} {'done' if status == 'ran' else status} in {seconds:.1f} s"


def choose_display() -> Display:
    """Live on a terminal, plain otherwise."""
    return LiveDisplay() if sys.stdout.isatty() else PlainDisplay()
