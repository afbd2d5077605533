"""What the preflight can know of the places that a run writes to: each problem is a sentence.

Nothing is left behind: a folder that is not there yet is tried in the nearest parent that is.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ovtrain.config.identity import insist_on_same_run
from ovtrain.config.train import TrainConfig
from ovtrain.costs import checkpoint, encoder
from ovtrain.schema.errors import CheckpointError
from ovtrain.schema.lock import holder

GIB = 2**30


def place_problems(config: TrainConfig) -> list[str]:
    """Folders that cannot be written to, or that another process trains in."""
    out = Path(config.run.out)
    found = unwritable("run.out", out)
    if not found:
        for name in ("logs", "checkpoints"):
            found += unwritable("run.out", out / name)
    if not found and (who := holder(out)):
        found.append(
            f"run.out={out}: another process trains here ({who}); wait for it, stop it, or choose "
            "another run.out"
        )
    if config.data.cache_dir:
        found += unwritable("data.cache_dir", Path(config.data.cache_dir))
    return found


def unwritable(key: str, folder: Path) -> list[str]:
    """Whether a folder cannot be written to, in a sentence that begins with its ``key``."""
    there = nearest(folder)
    if not there.is_dir():
        return [f"{key}: {there} is a file, a folder has to be made here; move it, or change {key}"]
    try:
        with tempfile.TemporaryFile(dir=there) as handle:
            handle.write(bytes(4096))
            handle.flush()
    except OSError as error:
        return [
            f"{key}={folder}: nothing can be written in {there} ({error.strerror}); check who may "
            f"write there, or change {key}"
        ]
    return []


def nearest(path: Path) -> Path:
    """``path``, or the nearest parent that exists."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def other_run(config: TrainConfig) -> list[str]:
    """Whether the run that is in ``run.out`` already has another config."""
    try:
        insist_on_same_run(config)
    except CheckpointError as error:
        return [f"run.out={error}"]
    return []


def checkpoint_bytes(config: TrainConfig, classes: Sequence[int | None]) -> int:
    """Of one checkpoint; ``classes`` of each source's head, None where it has none."""
    model = config.model
    total = checkpoint.encoder_bytes(encoder.parameters(model.size, model.patch))
    for source, count in zip(config.data.sources, classes, strict=True):
        if count is not None:
            own = config.head_of(source.name)
            kinds = (own.rows, own.optimizer, own.moments)
            total += checkpoint.head_bytes(count, model.size.width, *kinds)
    return total


def disk_problems(config: TrainConfig, one: int) -> list[str]:
    """Whether all checkpoints of ``one`` bytes each that lie there at once fit beside what is
    there. A quota is not known here."""
    run = config.run
    most = checkpoint.most_at_once(run.total_steps, run.checkpoint_every, run.keep, run.keep_every)
    out = Path(run.out)
    there = sum(f.stat().st_size for f in (out / "checkpoints").glob("step-*/*"))
    needed, free = most * one - there, shutil.disk_usage(nearest(out)).free
    if needed <= free:
        return []
    kept = f"run.keep={run.keep}" + (f", run.keep_every={run.keep_every}" * bool(run.keep_every))
    return [
        f"run.out={out}: up to {most} checkpoints of {one / GIB:,.2f} GiB lie there at once "
        f"({kept} and the one being written), {needed / GIB:,.1f} GiB more than now; "
        f"{free / GIB:,.1f} GiB are free; make room, keep fewer, or choose another run.out"
    ]
