"""The health check of one rank: a thread measures, the process itself keeps to the time.

Whatever the thread waits for (a kernel that never ends, a rank that is gone), after ``timeout_s``
rank 0 takes what all ranks have told so far, judges it, writes the report and tells the others.
"""

# torch.distributed is only partly typed, and says of nothing that it is exported.
# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore

from ovtrain.distributed.health_check.board import BROKEN, FINISHED, LEFT, READY, Board, connect
from ovtrain.distributed.health_check.links import all_reduce, measure_links
from ovtrain.distributed.health_check.local import LOCAL, Measure, Place, WrongResult
from ovtrain.distributed.health_check.report import error_line, report, report_lines
from ovtrain.distributed.health_check.verdict import (
    ALL_REDUCE,
    BETWEEN,
    DONE,
    IN_NODE,
    JOIN,
    WAITING,
    Finding,
    Link,
    RankRow,
    bad_nodes,
    verdict,
)
from ovtrain.schema.atomic import write_json
from ovtrain.schema.status import UNHEALTHY

BEAT_S, POLL_S = 0.5, 0.1
SILENT_S = 3.0
"""A process that has not beaten for so long at the end of the time is stopped, dead or gone."""
LAST_S = 30.0
"""After the time a rank that rank 0 tells nothing, since its own host is gone, ends by itself."""
NCCL_REPORTS = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
"""torch would end the processes that wait for a rank that died, and they would look as dead."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """``timeout_s``: of the whole check; ``share``, ``peak_share``: as ``verdict`` takes them.
    ``hosts``: names of the nodes by their number, for those that no rank speaks from."""

    timeout_s: float = 120.0
    share: float = 0.5
    peak_share: float = 0.0
    hosts: tuple[str, ...] = ()


@dataclass
class _Session:
    place: Place
    limits: Limits
    out: Path
    local: Mapping[str, Measure]
    port: int
    board: Board = field(init=False)
    row: RankRow = field(init=False)
    links: list[Link] = field(default_factory=list[Link])

    def say(self, row: RankRow) -> None:
        self.row = row
        self.board.publish(row, self.links)


def run_check(place: Place, limits: Limits, out: Path, local: Mapping[str, Measure] = LOCAL) -> int:
    """Collective: measure, judge, write ``out`` (rank 0); the exit status, the same on all ranks.

    ``local``: what each rank measures alone, by phase. Ends the process itself where rank 0 cannot
    be reached.
    """
    last = threading.Timer(limits.timeout_s + LAST_S, _give_up, [limits.timeout_s])
    last.daemon = True
    last.start()
    port = int(os.environ.get("MASTER_PORT", "0"))
    try:
        store = connect(place.rank, port, serve=True, timeout_s=limits.timeout_s)
    except RuntimeError as error:  # torch.distributed's errors are of this kind
        _give_up(limits.timeout_s, str(error).splitlines()[0])
    session = _Session(place, limits, out, local, store.port)
    thread = threading.Thread(target=_measure, args=[session], name="health check", daemon=True)
    thread.start()
    status = _supervise(session, Board(store, place.rank))
    if status == 0:
        thread.join(LAST_S)
    last.cancel()
    return status


def _give_up(timeout_s: float, why: str = "") -> NoReturn:
    address = f"{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{os.environ.get('MASTER_PORT', '')}"
    print(
        f"error: health check: rank 0 at {address} did not answer within {timeout_s:g} s"
        + (f" ({why})" if why else ""),
        file=sys.stderr,
        flush=True,
    )
    os._exit(UNHEALTHY)


def _measure(session: _Session) -> None:
    """All phases of this rank; every one begun is on the board."""
    place = session.place
    store = connect(place.rank, session.port, serve=False, timeout_s=session.limits.timeout_s)
    session.board = board = Board(store, place.rank)
    session.row = RankRow(place.rank, place.host, place.gpu)
    sound = _attempt(session, "device", lambda: replace(session.row, device=_device(place)))
    for name, work in session.local.items():
        sound &= _attempt(session, name, lambda w=work: session.row.measured(w(place)))
    if not sound:
        board.count(BROKEN, 1)
    session.say(session.row.begin(WAITING))
    board.count(READY, 1)
    while board.count(READY) < place.size:
        time.sleep(POLL_S)
    if place.size > 1 and not board.count(BROKEN):
        _joint(session, store)
    session.say(session.row.begin(DONE))
    board.count(FINISHED, 1)


def _device(place: Place) -> str:
    """Its name; this thread's CUDA calls are for it."""
    if place.gpu < 0:
        return "CPU"
    torch.cuda.set_device(place.device)
    return torch.cuda.get_device_name(place.device)


def _attempt(session: _Session, phase: str, work: Callable[[], RankRow]) -> bool:
    """One phase; false where the rank cannot go on to the next ones together with others."""
    session.say(session.row.begin(phase))
    try:
        session.row = work()
    except WrongResult as error:
        session.row = session.row.failed(str(error))
    except Exception as error:  # noqa: BLE001 (whatever a sick device raises is what is looked for)
        text = str(error).strip() or "no message"
        session.row = session.row.failed(f"{type(error).__name__}: {text.splitlines()[0]}")
        return False
    return True


def _joint(session: _Session, store: TCPStore) -> None:
    """The phases of all ranks together, up to the first that fails."""
    place = session.place
    told = [session.board.row(rank) for rank in range(place.size)]
    rows = [of_rank[0] for of_rank in told if of_rank]
    if len({row.gpu < 0 for row in rows}) > 1:
        return  # no backend carries both; the verdict names those without a GPU

    def joined() -> RankRow:
        os.environ.update(NCCL_REPORTS)
        dist.init_process_group(
            "nccl" if place.gpu >= 0 else "gloo",
            store=PrefixStore("group", store),
            rank=place.rank,
            world_size=place.size,
            # Beyond this check's own: NCCL's would end the process, which then could not report.
            timeout=timedelta(seconds=session.limits.timeout_s + 2 * LAST_S),
        )
        return session.row

    def linked(kind: str) -> RankRow:
        session.links += measure_links(place, kind, [row.host for row in rows])
        return session.row

    phases: dict[str, Callable[[], RankRow]] = {
        JOIN: joined,
        IN_NODE: lambda: linked(IN_NODE),
        BETWEEN: lambda: linked(BETWEEN),
        ALL_REDUCE: lambda: session.row.measured(all_reduce(place)),
    }
    if all(_attempt(session, name, work) for name, work in phases.items()):
        dist.destroy_process_group()


def _supervise(session: _Session, board: Board) -> int:
    """Beat until there is a verdict, which is rank 0's to make."""
    place, deadline = session.place, time.monotonic() + session.limits.timeout_s
    while True:
        board.beat()
        if place.rank == 0:
            if board.count(FINISHED) == place.size or time.monotonic() > deadline:
                return _conclude(session, board)
        elif (status := board.announced()) is not None:
            board.count(LEFT, 1)
            return status
        time.sleep(BEAT_S)


def _conclude(session: _Session, board: Board) -> int:
    """Rank 0: judge, write, tell."""
    limits, place = session.limits, session.place
    rows, links = _collect(board, place.size, limits)
    findings = verdict(
        rows, links, share=limits.share, timeout_s=limits.timeout_s, peak_share=limits.peak_share
    )
    nodes = bad_nodes(rows, findings)
    write_json(session.out, report(rows, links, findings, nodes))
    for line in report_lines(rows, links):
        log.info(line)
    if findings:
        _complain(findings, session.out)
    else:
        log.info("no fault in what was measured")
    status = UNHEALTHY if findings else 0
    board.announce(status)
    _wait_for(board, sum(row.answered for row in rows) - 1)
    return status


def _complain(findings: Sequence[Finding], out: Path) -> None:
    for finding in findings[1:]:
        log.warning(finding.text)
    print(error_line(findings, out), file=sys.stderr, flush=True)


def _wait_for(board: Board, ranks: int) -> None:
    """The store goes with this process: the others read the verdict first."""
    deadline = time.monotonic() + 10 * BEAT_S
    while board.count(LEFT) < ranks and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _collect(board: Board, ranks: int, limits: Limits) -> tuple[list[RankRow], list[Link]]:
    """What every rank has told; those that told nothing, with the host they should be on."""
    told = [board.row(rank) for rank in range(ranks)]
    alive = [True] * ranks
    if not all(of_rank and of_rank[0].phase == DONE for of_rank in told):
        alive = _alive(board, ranks)
    rows = [of_rank[0] if of_rank else None for of_rank in told]
    links = [link for of_rank in told if of_rank for link in of_rank[1]]
    return [
        _judged(row, alive[rank] or row.phase == DONE, limits)
        if row
        else RankRow(rank, _host(rank, rows, limits.hosts), answered=False)
        for rank, row in enumerate(rows)
    ], links


def _alive(board: Board, ranks: int) -> list[bool]:
    before = board.beats(ranks)
    deadline = time.monotonic() + SILENT_S
    while time.monotonic() < deadline:
        board.beat()
        time.sleep(BEAT_S)
    return [now > then for now, then in zip(board.beats(ranks), before, strict=True)]


def _judged(row: RankRow, alive: bool, limits: Limits) -> RankRow:
    """A row whose rank is silent, or still in a phase, when the time is over."""
    if not alive:
        return replace(row, answered=False)
    if row.phase in (WAITING, DONE):
        return row
    return row.failed(f"did not end within {limits.timeout_s:g} s")


def _host(rank: int, rows: Sequence[RankRow | None], hosts: Sequence[str]) -> str:
    """The node of a rank that never spoke: by its number, else its neighbours'."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    node = rank // per_node
    if node < len(hosts):
        return hosts[node]
    beside = (row for row in rows[node * per_node : (node + 1) * per_node] if row)
    return next((row.host for row in beside), f"node {node}")
