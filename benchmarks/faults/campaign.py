"""Runs of the campaign, one after the other; each leaves a line in ``runs.jsonl``."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import disk, network, numeric, process, samples, workers
from .case import Case, Missed, Unsound
from .fault import BAD, FINISHED, MOUNT, REFUSED, SOCKETS, Fault
from .jobs import Job
from .judge import (
    Evidence,
    differences,
    first_beyond,
    lost_steps,
    misbegun,
    told,
    unsaid,
    verdict,
)
from .site import LAYOUTS, Site

FAULTS: dict[str, Fault] = {
    fault.name: fault
    for module in (process, workers, disk, samples, numeric, network)
    for fault in module.FAULTS
}
RIGHTS: dict[str, Callable[[], bool]] = {
    MOUNT: disk.may_mount,
    SOCKETS: network.may_take_sockets,
}
"""That kinds need; not every process has them."""
TRIES = 6
"""Of a case whose run ended before its moment came."""
SHOWN = 1500
"""Characters of an output that go into a row."""
Row = dict[str, Any]


def schedule(faults: Sequence[Fault], runs: int) -> list[tuple[Fault, str, int]]:
    """(fault, layout, number of the run): the kinds take turns, the layouts within each kind."""
    rounds = [fault for turn in (0, 1) for fault in faults if turn < fault.turns]
    met = dict[str, int]()
    plan = list[tuple[Fault, str, int]]()
    for number in range(runs):
        fault = rounds[number % len(rounds)]
        turn = met[fault.name] = met.get(fault.name, -1) + 1
        first = list(FAULTS).index(fault.name)
        layouts = [layout for layout in LAYOUTS if layout not in fault.not_under]
        plan.append((fault, layouts[(first + turn) % len(layouts)], number))
    return plan


def run(site: Site, fault: Fault, layout: str, number: int, seed: int) -> Row:
    """One run; a case that had trained to its sound end before its moment, or without meeting its
    fault, is done again at another one. ``repeats``: so many were."""
    for attempt in range(TRIES):
        folder = site.folder / f"run-{number:04d}"
        case = Case(site, fault, folder, layout, 1000 * seed + number + 100_000 * attempt)
        evidence = True
        try:
            row = _one(case, last=attempt + 1 == TRIES)
            evidence = row is not None and row["outcome"] in BAD
        finally:
            case.close(keep=evidence)
        if not evidence:
            shutil.rmtree(folder, ignore_errors=True)
        if row is not None:
            return {"run": number, "seed": seed, **row, "repeats": attempt}
    raise AssertionError("the last try leaves a row")


def _one(case: Case, *, last: bool) -> Row | None:
    """None where the case had trained to its sound end before its moment; of the ``last`` try, that
    is wrong, too."""
    began, evidence, cost = time.time(), Evidence(), {"lost": 0, "recovered_s": None}
    case.fault.prepare(case)
    try:
        reference = case.reference()
    except Unsound as failed:
        evidence = Evidence([failed.status], [str(failed)])
    else:
        try:
            cost = _disturbed(case, evidence, reference)
        except Missed as early:
            evidence = Evidence([early.status], _too_early(case, early.status, reference))
            if not evidence.complaints and not last:
                return None
            evidence.complaints.append("its moment did not come")
    return {
        "fault": case.fault.name,
        "family": case.fault.family,
        "layout": case.layout,
        "outcome": verdict(evidence),
        "met": case.when,
        "statuses": evidence.statuses,
        "complaints": evidence.complaints,
        **cost,
        "seconds": round(time.time() - began, 2),
    }


def _too_early(case: Case, status: int | None, reference: Path) -> list[str]:
    """Why a start that was over before its moment is wrong."""
    if status != FINISHED:
        return [f"before its fault: status {status}: {case.job.shown()[-SHOWN:]}"]
    case.look()
    return _misbegun(case) + differences(case.out, reference, close=False)


def _misbegun(case: Case) -> list[str]:
    return [text for job in case.jobs for text in misbegun(job, case.steps)]


def _disturbed(case: Case, evidence: Evidence, reference: Path) -> Row:
    """What its fault cost: of a start that survived it, the time to its next step; where it then
    goes back on purpose, no step is lost. All else that becomes of the case is evidence."""
    fault = case.fault
    case.begin(hooked=True)
    fault.inject(case)
    _end(case, evidence)
    survived = evidence.statuses == [FINISHED]
    before = max(job.last for job in case.jobs)
    next_step = first_beyond(case.out, 0, case.hit)
    if _sound(evidence):
        _listen(case, evidence)
        _go_on(case, evidence)
    beyond = next_step if survived else first_beyond(case.out, before, case.hit)
    evidence.complaints += _misbegun(case)
    if _sound(evidence):
        evidence.complaints += told(lambda: fault.check(case))
        evidence.complaints += differences(case.out, reference, close=fault.close)
    return {
        "lost": 0 if survived else lost_steps(case.jobs),
        "recovered_s": None if beyond is None else round(beyond - case.hit, 2),
    }


def _sound(evidence: Evidence) -> bool:
    """So far."""
    return not evidence.complaints and None not in evidence.statuses


def _end(case: Case, evidence: Evidence) -> None:
    """The newest start ends in its time, or does not; its status is evidence."""
    evidence.statuses.append(case.job.wait(case.fault.bound_s))
    case.look()


def _listen(case: Case, evidence: Evidence) -> None:
    """How the disturbed start ended, and what it said."""
    fault, status = case.fault, evidence.statuses[-1]
    if status not in fault.statuses:
        evidence.complaints.append(f"ended with status {status}: {case.job.shown()[-SHOWN:]}")
    if status != FINISHED or fault.statuses == (FINISHED,):
        evidence.complaints += unsaid(fault.says, case.facts, _told(case, case.job))


def _told(case: Case, job: Job) -> str:
    """What a start showed, and what the run's logs hold."""
    logs = sorted((case.out / "logs").glob("*.log")) + sorted((case.out / "logs").glob("*.out"))
    return "\n".join([job.shown(), *(path.read_text(errors="replace") for path in logs)])


def _go_on(case: Case, evidence: Evidence) -> None:
    """The same command, until it has trained to the end: once, or twice where the input is at fault
    and has to be mended first. Not after a start that was wrong."""
    fault, after = case.fault, case.fault.after
    if not _sound(evidence) or (evidence.statuses[-1] == FINISHED and after is None):
        return
    if after is not None:
        evidence.complaints += told(lambda: after(case))
    if fault.refused:
        _again(case, evidence, REFUSED, fault.refused)
        evidence.complaints += told(lambda: fault.mend(case))
    _again(case, evidence, FINISHED, fault.then_says)


def _again(case: Case, evidence: Evidence, wanted: int, says: Sequence[str]) -> None:
    if not _sound(evidence):
        return
    case.begin(hooked=case.fault.lasting)
    _end(case, evidence)
    status, shown = evidence.statuses[-1], case.job.shown()
    if status not in (wanted, None):
        evidence.complaints.append(f"started again: status {status}: {shown[-SHOWN:]}")
    evidence.complaints += unsaid(says, case.facts, shown)


def campaign(site: Site, plan: Sequence[tuple[Fault, str, int]], seed: int, out: Path) -> None:
    """What of the plan ``out`` does not yet hold; a line on stderr for each."""
    done = {row["run"] for row in rows_of(out)}
    began, left = time.monotonic(), [one for one in plan if one[2] not in done]
    for count, (fault, layout, number) in enumerate(left, 1):
        row = run(site, fault, layout, number, seed)
        with open(out, "a") as handle:
            handle.write(json.dumps(row) + "\n")
        pace = (time.monotonic() - began) / count
        minutes = pace * (len(left) - count) / 60
        print(
            f"{len(done) + count}/{len(plan)}  {fault.name} ({layout}, {row['met']}): "
            f"{row['outcome']}, {row['seconds']:.1f} s{_repeated(row)}; {minutes:.0f} min "
            f"left{''.join(f'{chr(10)}    {text}' for text in row['complaints'])}",
            file=sys.stderr,
            flush=True,
        )


def _repeated(row: Row) -> str:
    return f", repeated {row['repeats']}" if row["repeats"] else ""


def left_out(faults: Sequence[Fault]) -> dict[str, list[str]]:
    """{right that this process has not: kinds that need it}."""
    needed = {fault.needs for fault in faults if fault.needs}
    missing = [right for right in RIGHTS if right in needed and not RIGHTS[right]()]
    return {right: [fault.name for fault in faults if fault.needs == right] for right in missing}


def of_another(rows: Sequence[Row], plan: Sequence[tuple[Fault, str, int]], seed: int) -> bool:
    """Whether rows are of other runs than a plan of that seed has under their numbers."""
    planned = {number: (fault.name, layout, seed) for fault, layout, number in plan}
    known = [(row["run"], (row["fault"], row["layout"], row["seed"])) for row in rows]
    return any(planned.get(number, what) != what for number, what in known)


def rows_of(path: Path) -> list[Row]:
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["run"])
