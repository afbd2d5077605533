"""Plain log lines for jobs: ``12:03:04 [0/2] text``; the prefix is left out for a single process.

Lines go to stderr and, when ``folder`` is given, to ``folder/rank-00000.log`` as well.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path


def job_logger(
    name: str, rank: int = 0, world_size: int = 1, folder: Path | None = None
) -> logging.Logger:
    """A logger of its own (no propagation). Called again, it replaces its earlier handlers."""
    logger = logging.getLogger(name)
    close_handlers(logger)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    prefix = f"[{rank}/{world_size}] " if world_size > 1 else ""
    form = logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / f"rank-{rank:05d}.log"))
    for handler in handlers:
        handler.setFormatter(form)
        logger.addHandler(handler)
    return logger


def close_handlers(logger: logging.Logger) -> None:
    """Detach and close every handler of ``logger``."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
