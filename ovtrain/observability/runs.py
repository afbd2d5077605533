"""A training run as its metrics.jsonl tells it: rows, starts, stops, faults. Other files of the run
directory (run.json, config.yaml) only add to it, where they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ovtrain.observability.history import EVENT, METRICS, Row, read_lines, read_object
from ovtrain.observability.sinks import STOPPED
from ovtrain.schema.errors import OvtrainError

PLACE = ("world_size", "hosts", "device", "job", "code")
VIDEO_VIEWS = ("codec", "frames", "tiling")
RECENT = 20
"""Rows that say how fast a run is now."""


ENDING = ("nonfinite", STOPPED)
"""Faults that end a run, whatever its config."""


class NoRun(OvtrainError):
    """No run is where one was looked for."""


@dataclass(frozen=True)
class Segment:
    """What one start computed: ``start`` is its event (empty for a run from before events),
    ``ended`` the stop event, if there is one."""

    start: Row
    rows: list[Row]
    ended: Row | None

    @property
    def first(self) -> int:
        """The step that it went on from."""
        return int(self.start.get("step", 0))

    @property
    def last(self) -> int:
        """The last step on record."""
        return int(self.rows[-1].get("step", 0)) if self.rows else self.first


@dataclass(frozen=True)
class Run:
    """``label``: the part of the name that tells it from the others beside it; ``folder``: the run
    directory, as far as it is at hand; ``about``: what ran where; ``lines``: of metrics.jsonl."""

    name: str
    label: str
    folder: Path
    about: Row
    lines: list[Row]
    rows: list[Row]
    events: list[Row]

    @property
    def group(self) -> str:
        return self.folder.name

    @property
    def control(self) -> bool:
        return "shuffled" in self.name

    def of(self, event: str) -> list[Row]:
        return [row for row in self.events if row[EVENT] == event]

    @cached_property
    def config(self) -> Row:
        """As the last start resolved it; of an older run its config.yaml; else empty."""
        found = next((row["config"] for row in reversed(self.of("start")) if "config" in row), None)
        return found if isinstance(found, dict) else _read_yaml(self.folder / "config.yaml")

    @cached_property
    def segments(self) -> list[Segment]:
        """In the order of the file: one per start."""
        found: list[Segment] = []
        for row in self.lines:
            if row.get(EVENT) == "start" or (EVENT not in row and not found):
                found.append(Segment(row if EVENT in row else {}, [], None))
            if EVENT not in row:
                found[-1].rows.append(row)
            elif row[EVENT] == "stop" and found:
                found[-1] = Segment(found[-1].start, found[-1].rows, row)
        return found

    @cached_property
    def restarts(self) -> list[Row]:
        """Start events but the first."""
        return self.of("start")[1:]

    @property
    def step(self) -> int:
        return int(self.rows[-1].get("step", 0)) if self.rows else 0

    @property
    def total_steps(self) -> int:
        """Steps that the config asks for; 0 where it is not known."""
        run = part(self.config, "run")
        steps, samples, batch = (run.get(key) or 0 for key in ("steps", "samples", "global_batch"))
        return int(steps) or (-(-int(samples) // int(batch)) if samples and batch else 0)

    @cached_property
    def sources(self) -> list[str]:
        """Those with a loss, in their order in the file."""
        keys = dict.fromkeys(key for row in self.rows for key in row if key.startswith("loss/"))
        return [key.removeprefix("loss/") for key in keys]

    @property
    def samples(self) -> int:
        """Samples seen so far."""
        return sum(self.views.values())

    @property
    def views(self) -> dict[str, int]:
        found = self.rows[-1].get("views") if self.rows else None
        return {k: int(v) for k, v in found.items()} if isinstance(found, dict) else {}

    @property
    def asked_views(self) -> dict[str, float]:
        """Shares of the video views as the config asks for them; empty where it is not known."""
        views = part(part(self.config, "data"), "views")
        return {name: float(views[name]) for name in VIDEO_VIEWS if is_number(views.get(name))}

    @property
    def finished(self) -> bool:
        return 0 < self.total_steps <= self.step

    @property
    def heard(self) -> Row:
        """The last line that shows it alive: faults do not."""
        return next((row for row in reversed(self.lines) if row.get(EVENT) != "fault"), {})

    @property
    def ended_by(self) -> Row | None:
        """The fault that ended the last start, where one did."""
        end = self.lines[-1] if self.lines else {}
        rise = ("rise",) if part(self.config, "guards").get("on_spike") == "stop" else ()
        ended = end.get(EVENT) == "fault" and end.get("kind") in (*ENDING, *rise)
        return end if ended else None

    def seconds_between_rows(self) -> float | None:
        """Of the recent rows of the last segment that has two."""
        for segment in reversed(self.segments):
            times = [row["time"] for row in segment.rows[-RECENT:] if is_number(row.get("time"))]
            if len(times) > 1:
                return median(b - a for a, b in pairwise(times))
        return None

    def seconds_per_step(self) -> float | None:
        """Of the recent rows of the last segment, saves and waits included."""
        rows = self.segments[-1].rows[-RECENT:] if self.segments else []
        paces = [
            (b["time"] - a["time"]) / (b["step"] - a["step"])
            for a, b in pairwise(rows)
            if is_number(a.get("time")) and is_number(b.get("time")) and b["step"] > a["step"]
        ]
        return median(paces) if paces else None


def part(value: Row, key: str) -> Row:
    """The mapping under ``key``, or an empty one."""
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def why(start: Row) -> str:
    """Why a run was started again, as far as it is known."""
    after = start.get("after")
    if not isinstance(after, dict):
        return ""
    where = "" if after.get("rank") is None else f" (rank {after['rank']} on {after.get('node')})"
    return f"{after.get('why') or after.get('kind', '')}{where}"


Reader = Callable[[Path], Iterable[Row]]


def read_run(metrics: Path, name: str, label: str, read: Reader = read_lines) -> Run:
    """The run whose metrics.jsonl, or a copy of it under any name, is ``metrics``."""
    lines = list(read(metrics))
    events = [row for row in lines if EVENT in row]
    starts = [row for row in events if row[EVENT] == "start"]
    # Beside a copy under another name lies nothing that is known to be the run's.
    folder = metrics.parent if metrics.name == METRICS else metrics.with_suffix("")
    about = read_object(folder / "run.json") or {}
    if starts:
        about |= part(starts[-1], "versions") | {k: starts[-1].get(k) for k in PLACE}
    rows = [row for row in lines if EVENT not in row]
    return Run(name, label, folder, about, lines, rows, events)


def read_runs(paths: Sequence[Path], read: Reader = read_lines) -> list[Run]:
    """The runs at or below ``paths``, in their order, each under the shortest end of its path that
    no other has. Raises NoRun where a path holds none."""
    found = list(dict.fromkeys(file for path in paths for file in find_metrics(path)))
    places = [_place(file).parts for file in found]
    longest = max(map(len, places))
    length = next((n for n in range(1, longest) if _distinct(places, n)), longest)
    names = [str(Path(*place[-length:])) for place in places]
    return [read_run(file, name, name, read) for file, name in zip(found, names, strict=True)]


def _place(metrics: Path) -> Path:
    full = metrics.resolve()
    return full.parent if full.name == METRICS else full.with_suffix("")


def _distinct(places: list[tuple[str, ...]], length: int) -> bool:
    return len({place[-length:] for place in places}) == len(places)


def find_metrics(path: Path) -> list[Path]:
    """``path`` itself where it is a file, else each metrics.jsonl below it, sorted. Raises NoRun
    where there is none."""
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob(METRICS) if "checkpoints" not in p.parts)
    if not found:
        raise NoRun(
            str(path),
            f"no {METRICS} below it",
            fix="name a run directory; if it is one, its job has not begun to train",
        )
    return found


def _read_yaml(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        value = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError):
        return {}
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}
