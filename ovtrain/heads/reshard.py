"""Class rows on disk, a file per class range, and from any number of ranks to any other.

``head-{source}-{lo:09d}-{hi:09d}.safetensors`` holds rows lo..hi and whatever state is aligned with
them: tensors of (hi - lo, ...). Readers ask for a range and get it from whichever files there are,
reading no more of them than they need. Errors: CheckpointError.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ovtrain.config.step_plan import split
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import CheckpointError

_NAME = re.compile(r"head-(?P<source>.+)-(?P<lo>\d{9})-(?P<hi>\d{9})\.safetensors")


def file_name(source: str, lo: int, hi: int) -> str:
    return f"head-{source}-{lo:09d}-{hi:09d}.safetensors"


def saved_ranges(folder: Path, source: str) -> list[tuple[int, int, Path]]:
    """(lo, hi, file) of a source's files, in order."""
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(
        (int(match["lo"]), int(match["hi"]), path)
        for match, path in matches
        if match is not None and match["source"] == source
    )


def read_rows(folder: Path, source: str, lo: int, hi: int) -> dict[str, Tensor]:
    """Rows lo..hi of a head and their state, {} for an empty range.

    Raises CheckpointError where the files do not hold each of the rows exactly once.
    """
    parts: list[dict[str, Tensor]] = []
    reached = lo
    for first, last, path in saved_ranges(folder, source):
        if min(last, hi) <= max(first, lo):
            continue
        if max(first, lo) != reached:
            break
        reached = min(last, hi)
        parts.append(_slice_of(path, max(first, lo) - first, reached - first))
    if reached != hi:
        held = ", ".join(f"{first}..{last}" for first, last, _ in saved_ranges(folder, source))
        raise CheckpointError(
            str(folder),
            f"rows {lo}..{hi} of head {source} are not whole: the files hold {held or 'none'}",
            fix="put the missing files back, or take another checkpoint",
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _slice_of(path: Path, start: int, stop: int) -> dict[str, Tensor]:
    try:
        opened: Any = safe_open(str(path), "pt")
        with opened as file:
            return {name: file.get_slice(name)[start:stop] for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, IndexError) as error:
        raise CheckpointError(str(path), f"unreadable ({error})") from error


def reshard(folder: Path, source: str, classes: int, ranks: int, out: Path) -> None:
    """Write a saved head again, as the files of ``ranks`` ranks, one in memory at a time. For other
    tools: a checkpoint is loaded on any world size as it is."""
    for rank in range(ranks):
        span = split(classes, rank, ranks)
        if len(span):
            tensors = read_rows(folder, source, span.start, span.stop)
            with atomic_open(out / file_name(source, span.start, span.stop)) as handle:
                handle.write(save(tensors))
