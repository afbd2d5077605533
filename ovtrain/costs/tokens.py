"""Tokens of each view, from the picture side and patch side in pixels."""

from __future__ import annotations


def per_frame(size: int, patch: int = 14) -> int:
    """Patches of one square picture."""
    return (size // patch) ** 2


def per_view(size: int, patch: int, token_budget: int, chunks: int) -> dict[str, int]:
    """Tokens of one sample: codec fills the budget; frames and tiling show ``chunks`` pictures."""
    frame = per_frame(size, patch)
    return {
        "codec": token_budget,
        "frames": chunks * frame,
        "tiling": chunks * frame,
        "image": frame,
    }
