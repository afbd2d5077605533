"""What a disturbed run is held to: the run that nobody disturbed, and its own words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from ovtrain.checkpoint import storage
from ovtrain.observability.history import METRICS, read_events, read_lines, read_rows
from ovtrain.schema.errors import CheckpointError, OvtrainError
from ovtrain.schema.isolated import category
from tests.helpers.training import computed

from .fault import EXACT, FINISHED, HANG, NAMED, REFUSED, WRONG
from .jobs import Job

CLOSE = 1e-5
"""Relative, of losses and norms on another world size: sums are taken in another order."""
SHOWN = 6
"""Differences that are written down."""
UNREADABLE = (OvtrainError, OSError, json.JSONDecodeError, UnicodeDecodeError)
"""What reading a run directory raises where something in it is damaged or missing."""


@dataclass
class Evidence:
    """``statuses``: of all starts, None where one had not ended in its time; ``complaints``: what
    was not said, or is not as it should be."""

    statuses: list[int | None] = field(default_factory=list[int | None])
    complaints: list[str] = field(default_factory=list[str])


def verdict(evidence: Evidence) -> str:
    """The outcome. A stop counts as named, not as a resumption, where a start ended with status 2:
    the same command would not have gone on."""
    if None in evidence.statuses:
        return HANG
    if evidence.complaints or not evidence.statuses or evidence.statuses[-1] != FINISHED:
        return WRONG
    return NAMED if REFUSED in evidence.statuses else EXACT


def unsaid(patterns: Iterable[str], facts: Mapping[str, object], text: str) -> list[str]:
    """Patterns that are not in a text, with the facts in their places."""
    filled = [_filled(pattern, facts) for pattern in patterns]
    return [f"does not say {p!r}" for p in filled if not re.search(p, text)]


def _filled(pattern: str, facts: Mapping[str, object]) -> str:
    for name, value in facts.items():
        pattern = pattern.replace("{" + name + "}", re.escape(str(value)))
    return pattern


def told(work: Callable[[], list[str] | None]) -> list[str]:
    """Its complaints; that it cannot read what a run has left is one."""
    try:
        return work() or []
    except UNREADABLE as error:
        return [f"cannot be read: {type(error).__name__}: {error}"]


def differences(out: Path, reference: Path, *, close: bool) -> list[str]:
    """How the end of a run differs from that of the undisturbed one: bytes of every checkpoint
    file, what the checkpoint counts, computed rows, samples that were named, files left behind.
    What cannot be read differs."""
    rows, last = computed(reference), _last(reference)
    counts, named = storage.read_state(last)["train"], quarantined(reference)
    looks = (
        lambda: _of_rows(computed(out), rows, close=close),
        lambda: [] if close else _of_files(_last(out), last),
        lambda: _of_counts(storage.read_state(_last(out))["train"], counts, close=close),
        lambda: _of_names(quarantined(out), named),
        lambda: _left_behind(out),
    )
    return list(dict.fromkeys(text for look in looks for text in told(look)))


def _of_names(found: object, wanted: object) -> list[str]:
    return [] if found == wanted else [f"quarantine: {found} instead of {wanted}"]


def _left_behind(out: Path) -> list[str]:
    """Of broken-off writes, anywhere in the run directory."""
    paths = {*out.rglob(".*.tmp"), *(out / "checkpoints").glob(".*")}
    left = sorted(str(path.relative_to(out)) for path in paths)
    return [f"left behind: {left}"] if left else []


def _of_rows(
    rows: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]], *, close: bool
) -> list[str]:
    steps, expected = [row["step"] for row in rows], [row["step"] for row in wanted]
    if steps != expected:
        return [f"rows of steps {steps}"]
    pairs = zip(rows, wanted, strict=True)
    differing = [
        f"step {row['step']}, {key}: {row.get(key)} instead of {other.get(key)}"
        for row, other in pairs
        for key in sorted(row.keys() | other.keys())
        if not _equal(row.get(key), other.get(key), close=close)
    ]
    return differing[:SHOWN]


def _equal(value: Any, other: Any, *, close: bool) -> bool:
    if close and isinstance(value, float) and isinstance(other, float):
        return abs(value - other) <= CLOSE * max(abs(value), abs(other))
    return _text(value) == _text(other)


def _text(value: Any) -> str:
    """A NaN equals itself in it, and a mapping that was read back has its own order."""
    return json.dumps(value, sort_keys=True)


def _last(out: Path) -> Path:
    steps = storage.candidates(out / "checkpoints")
    if not steps:
        raise CheckpointError(str(out), "no checkpoint here")
    storage.check(steps[0])
    return steps[0]


def _digests(folder: Path) -> dict[str, str]:
    paths = folder.glob("*.safetensors")
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in paths}


def _of_files(folder: Path, reference: Path) -> list[str]:
    own, wanted = _digests(folder), _digests(reference)
    if folder.name != reference.name or own.keys() != wanted.keys():
        return [f"{folder.name} with {sorted(own)}"]
    return [f"{folder.name}/{name} has other bytes" for name in own if own[name] != wanted[name]]


def _of_counts(state: Mapping[str, Any], wanted: Mapping[str, Any], *, close: bool) -> list[str]:
    """The loss's history is a matter of rows, and on another world size not the same to the bit."""
    names = [name for name in wanted if not (close and name == "spikes")]
    return [
        f"state: {name} {state.get(name)} instead of {wanted[name]}"
        for name in names
        if not _equal(state.get(name), wanted[name], close=close)
    ]


def quarantined(out: Path) -> list[tuple[str, str, str, int]]:
    """(source, sample, category, step) of all ranks' samples that were not used."""
    rows = [row for path in out.glob("quarantine-*.jsonl") for row in read_lines(path)]
    return sorted((r["source"], r["name"], category(r["reason"]), r["step"]) for r in rows)


def reached(out: Path, since: float = 0.0) -> int:
    """The last step that was logged, by a start that began at ``since``; 0 without one."""
    rows = read_rows(out / METRICS)
    return max((row["step"] for row in rows if row["time"] > since), default=0)


def firsts(out: Path, since: float) -> list[int]:
    """The steps from which runs went on since then: of one start, one, or none so far."""
    rows = read_events(out / METRICS)
    return [row["step"] for row in rows if row["event"] == "start" and row["time"] > since]


def due(out: Path) -> int:
    """The step from which a start has to go on: of the newest sound checkpoint (the newest up to
    the one that ``latest`` names, if it is there); 0 without one."""
    for folder in storage.candidates(out / "checkpoints"):
        if not told(partial(storage.check, folder)):
            return storage.step_of(folder)
    return 0


def misbegun(job: Job, steps: int) -> list[str]:
    """A start that went on from elsewhere than it had to. At the end of a run none goes on, and one
    that did not train to the end need not have begun."""
    wanted = [job.due] if job.due < steps else []
    if job.firsts == wanted or not (job.firsts or job.poll() == FINISHED):
        return []
    return [f"went on from step {job.firsts}, not {wanted}"]


def lost_steps(starts: Iterable[Job]) -> int:
    """Steps that were computed and are computed again, over all starts."""
    at = lost = 0
    for job in starts:
        for first in job.firsts:
            lost, at = lost + max(0, at - first), first
        at = max(at, job.last)
    return lost


def first_beyond(out: Path, step: int, moment: float) -> float | None:
    """When the first row beyond ``step``, later than ``moment``, was written."""
    rows = read_rows(out / METRICS)
    times = [row["time"] for row in rows if row["step"] > step and row["time"] > moment]
    return min(times, default=None)
