"""``quarantine-RANK.jsonl``: the samples that a rank could not use, with the step that met them."""

from __future__ import annotations

import json
from pathlib import Path

from ovtrain.data.faults import BadSample
from ovtrain.observability.history import read_rows
from ovtrain.schema.atomic import atomic_open, naming

PATTERN = "quarantine-*.jsonl"


def record(out: Path, rank: int, bad: list[BadSample], step: int) -> None:
    if not bad:
        return
    path = out / f"quarantine-{rank:05d}.jsonl"
    with naming(path), open(path, "a") as handle:
        handle.writelines(json.dumps(vars(one) | {"step": step}) + "\n" for one in bad)


def forget_after(out: Path, step: int) -> None:
    """Drop what later steps met: a resumed run meets it again. For one process, all ranks' files,
    however many ranks there were."""
    for path in out.glob(PATTERN):
        kept = [row for row in read_rows(path) if row.get("step", 0) <= step]
        with atomic_open(path, "w") as handle:
            handle.writelines(json.dumps(row) + "\n" for row in kept)
        if not kept:
            path.unlink()
