"""Bytes of checkpoints on disk, all ranks together, and how many of them a run keeps at once.

Left out: file headers, state and manifest, kilobytes to a megabyte each.
"""

from __future__ import annotations

from math import lcm

from ovtrain.costs import head

ENCODER_BYTES = 12
"""Of each parameter: itself and its two AdamW moments, all fp32 whatever the run's precision."""


def encoder_bytes(parameters: int) -> int:
    return ENCODER_BYTES * parameters


def head_bytes(
    classes: int, width: int, rows: str = "fp32", optimizer: str = "adamw", moments: str = "fp32"
) -> int:
    """Class rows as they are stored, and their optimizer's state."""
    return head.weight_bytes(classes, width, 1, rows) + head.optimizer_bytes(
        classes, width, 1, optimizer, moments
    )


def most_at_once(steps: int, every: int, keep: int, keep_every: int = 0) -> int:
    """Most checkpoints that lie on disk together in a run of ``steps`` that saves ``every`` so many
    and at its end: the last ``keep``, those of every ``keep_every``-th step (0: none), and the one
    being written, before which none is deleted."""
    saves = -(-steps // every)
    older = max(saves - keep - 1, 0) * every
    return min(keep + 1, saves) + (older // lcm(every, keep_every) if keep_every else 0)
