"""What a disturbed run is held to: the run that nobody disturbed, and its own words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ovtrain.checkpoint import storage
from ovtrain.observability.history import read_lines, read_rows
from ovtrain.schema.errors import CheckpointError
from ovtrain.schema.isolated import category
from tests.helpers.training import computed

from .fault import EXACT, FINISHED, HANG, NAMED, REFUSED, WRONG

CLOSE = 1e-5
"""Relative, of losses and norms on another world size: sums are taken in another order."""
SHOWN = 6
"""Differences that are written down."""


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


def differences(out: Path, reference: Path, *, close: bool) -> list[str]:
    """How the end of a run differs from that of the undisturbed one: bytes of every checkpoint
    file, what the checkpoint counts, computed rows, samples that were named, files left behind."""
    found = _of_rows(computed(out), computed(reference), close=close)
    if not close:
        found += _of_files(_last(out), _last(reference))
    found += _of_counts(_state(out)["train"], _state(reference)["train"], close=close)
    if quarantined(out) != quarantined(reference):
        found.append(f"quarantine: {quarantined(out)} instead of {quarantined(reference)}")
    left = sorted(path.name for path in (out / "checkpoints").glob(".*"))
    return found + ([f"left behind: {left}"] if left else [])


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


def _state(out: Path) -> dict[str, Any]:
    return storage.read_state(_last(out))


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


def reached(out: Path) -> int:
    """The last step that was logged."""
    return max((row["step"] for row in read_rows(out / "metrics.jsonl")), default=0)


def resumed_at(out: Path) -> int:
    """The step from which the last start went on."""
    starts = [r for r in read_lines(out / "metrics.jsonl") if r.get("event") == "start"]
    return starts[-1]["step"] if starts else 0


def first_beyond(out: Path, step: int, moment: float) -> float | None:
    """When the first row beyond ``step``, later than ``moment``, was written."""
    rows = read_rows(out / "metrics.jsonl")
    times = [row["time"] for row in rows if row["step"] > step and row["time"] > moment]
    return min(times, default=None)
