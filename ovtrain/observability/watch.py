"""Terminal view of runs, from their metrics.jsonl alone: ``ovtrain watch RUN [--follow]``.

Works while the run is going on, over ssh, and on a file copied from elsewhere. No line is wider
than the terminal; colours are for terminals only.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from ovtrain.observability.history import Tail, read_lines
from ovtrain.observability.panel import describe
from ovtrain.observability.runs import NoRun, Reader, Run, read_runs

CLEAR = "\x1b[H\x1b[J"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
PLAIN_WIDTH = 80
"""Columns where the output is no terminal."""


def watch(
    path: Path,
    follow: bool = False,
    interval: float = 5.0,
    stream: TextIO | None = None,
    width: int | None = None,
) -> None:
    """Print the view of the run at ``path`` (a folder, or a copy of its metrics.jsonl), or of the
    runs below it, once; or again every ``interval`` seconds until interrupted, from before there is
    one. Raises NoRun where there is none to show once."""
    to = sys.stdout if stream is None else stream
    console = Console(file=to, width=width, highlight=False, soft_wrap=True)
    live = follow and console.is_terminal
    read = Tail().read if follow else read_lines
    if not console.is_terminal and width is None:
        console.width = PLAIN_WIDTH
    try:
        while True:
            shown = _shown(path, read, console.width, wait=follow)
            if live:
                # Kept to the screen's height: what scrolls away could not be drawn over.
                to.write(HIDE + CLEAR)
                shown = shown[: max(console.height - 1, 1)]
            for line in shown:
                console.print(line, no_wrap=True, crop=True, overflow="ellipsis")
            to.flush()
            if not follow:
                return
            time.sleep(interval)
    except KeyboardInterrupt:
        if not follow:
            raise
    finally:
        if live:
            to.write(SHOW)
            to.flush()


def _shown(path: Path, read: Reader, width: int, *, wait: bool) -> list[Text]:
    """``wait``: no run yet is no error."""
    try:
        return _blocks(read_runs([path], read), width)
    except NoRun:
        if not wait:
            raise
    return [Text(f"{path}: no rows yet", style="yellow")]


def _blocks(runs: list[Run], width: int) -> list[Text]:
    now = time.time()
    lines: list[Text] = []
    for run in runs:
        lines += [*describe(run, width, now), Text()]
    return lines[:-1]
