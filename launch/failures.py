"""A rank that failed: why, told from its exit status and its last lines, and told to other nodes.

``{run.out}/logs/failures/{attempt}-{node}.json`` is the first failure that a node saw in a start of
a job.
"""

from __future__ import annotations

import json
import platform
import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ovtrain.schema.atomic import write_json
from ovtrain.schema.status import REQUEUE, SAVED

ERROR = re.compile(r"^(?:\[[^\]]*\]:?\s*)?error: (?P<text>.+)")
TRACEBACK = "Traceback (most recent call last)"
LOST_PEER = re.compile(
    r"Connection (closed by peer|reset|refused)|Broken pipe|Socket closed|"
    r"connection was (closed|aborted)|remote process exited|DistStoreError|TCPStore|"
    r"NCCL.*(remote error|timed? ?out|was aborted)",
    re.IGNORECASE,
)
"""What ranks say when another one is gone: they are not the cause."""


@dataclass(frozen=True)
class Failure:
    """The first failure that a node saw. ``kind``: "failed", "stopped" (after a signal),
    "input_error" (which a restart would meet again)."""

    rank: int
    node: str
    status: int
    kind: str
    why: str
    time: float
    text: list[str] = field(default_factory=list[str])

    @classmethod
    def of_rank(cls, rank: int, node: str, status: int, last: Sequence[str]) -> Failure:
        """From a rank's exit status (negative: a signal) and the last lines that it printed."""
        starts = [i for i, line in enumerate(last) if TRACEBACK in line]
        text = list(last[starts[0] :]) if starts else list(last[-20:])
        errors = [found["text"] for line in last if (found := ERROR.match(line))]
        if status == REQUEUE and any(line.endswith(SAVED) for line in last):
            why = f"a rank, not the launcher, was sent a signal; all {SAVED}"
        elif status == REQUEUE:
            why = f"a step hung; where its threads stood is in logs/stacks-{rank:05d}.txt"
        elif status < 0:
            why = f"killed by signal {-status} ({_signal_name(-status)})"
        elif errors:
            why = errors[-1]
        else:
            lines = [line for line in text if line.strip()]
            told = bool(lines) and (bool(starts) or status == 1)
            why = lines[-1].strip() if told else f"ended with status {status}"
        kind = "input_error" if status == 2 else "failed"
        return cls(rank, node, status, kind, why, time.time(), text)

    @property
    def aftermath(self) -> bool:
        """Whether it only tells that another rank has gone."""
        return self.status > 0 and LOST_PEER.search(self.why) is not None

    def lines(self) -> list[str]:
        """For the job's log: who and why on top, then what that rank printed last."""
        where = f"logs/rank-{self.rank:05d}.out"
        top = f"error: rank {self.rank} on {self.node}: {self.why}"
        return [top, *(f"  | {line}" for line in self.text), f"  all that it printed: {where}"]


def _failures_folder(out: Path) -> Path:
    return out / "logs" / "failures"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return signal.strsignal(number) or "unknown"


def record_failure(out: Path, attempt: str, failure: Failure) -> None:
    """Let the other nodes of this start know."""
    write_json(_failures_folder(out) / f"{attempt}-{failure.node}.json", asdict(failure))


def failures(out: Path, attempt: str) -> list[Failure]:
    """Of one start, the one that began it first."""
    found = [
        Failure(**json.loads(path.read_text()))
        for path in _failures_folder(out).glob(f"{attempt}-*.json")
    ]
    return sorted(found, key=lambda failure: (failure.aftermath, failure.time))


def node_name(env: Mapping[str, str]) -> str:
    """Of this node as the launcher calls it, which need not be its host name."""
    return env.get("SLURMD_NODENAME") or env.get("OVTRAIN_HOST") or platform.node()
