"""Runs of the campaign, one after the other; each leaves a line in ``runs.jsonl``."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import disk, network, numeric, process, samples, workers
from .case import LAYOUTS, Case, Missed, Site
from .fault import FINISHED, HANG, REFUSED, WRONG, Fault
from .jobs import Job
from .judge import (
    Evidence,
    differences,
    first_beyond,
    reached,
    resumed_at,
    unsaid,
    verdict,
)

FAULTS: dict[str, Fault] = {
    fault.name: fault
    for module in (process, workers, disk, samples, numeric, network)
    for fault in module.FAULTS
}
TRIES = 6
"""Of a case whose run ended before its moment came."""
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
        plan.append((fault, list(LAYOUTS)[(first + turn) % len(LAYOUTS)], number))
    return plan


def run(site: Site, fault: Fault, layout: str, number: int, seed: int) -> Row:
    """One run; a case that was over before its moment is done again at another one."""
    for attempt in range(TRIES):
        folder = site.folder / f"run-{number:04d}"
        case = Case(site, fault, folder, layout, 1000 * seed + number + 100_000 * attempt)
        try:
            row = _one(case)
        except Missed:
            continue
        finally:
            case.close()
        if row["outcome"] not in (WRONG, HANG):
            shutil.rmtree(folder, ignore_errors=True)
        return {"run": number, "seed": seed, **row}
    raise RuntimeError(f"{fault.name}: the run was over before its moment, {TRIES} times")


def _one(case: Case) -> Row:
    began, fault = time.time(), case.fault
    fault.prepare(case)
    reference = case.reference()
    case.jobs.append(case.start(hooked=True))
    fault.inject(case)
    evidence = Evidence()
    survived = _ended(case, evidence) and evidence.statuses == [FINISHED]
    before, cost = reached(case.out), _cost(case, 0, survived=True)
    if None not in evidence.statuses:
        _listen(case, evidence)
        _go_on(case, evidence)
    if not evidence.complaints and None not in evidence.statuses:
        evidence.complaints += fault.check(case)
        evidence.complaints += differences(case.out, reference, close=fault.close)
    outcome = verdict(evidence)
    return {
        "fault": fault.name,
        "family": fault.family,
        "layout": case.layout,
        "outcome": outcome,
        "met": case.when,
        "statuses": evidence.statuses,
        "complaints": evidence.complaints,
        **(cost if survived else _cost(case, before, survived=False)),
        "seconds": round(time.time() - began, 2),
    }


def _ended(case: Case, evidence: Evidence) -> bool:
    """Whether the newest start ended in its time; its status is evidence."""
    status = case.job.wait(case.fault.bound_s)
    evidence.statuses.append(status)
    return status is not None


def _listen(case: Case, evidence: Evidence) -> None:
    """How the disturbed start ended, and what it said."""
    fault, status = case.fault, evidence.statuses[-1]
    if status not in fault.statuses:
        evidence.complaints.append(f"ended with status {status}: {case.job.shown()[-1500:]}")
    if status != FINISHED or fault.statuses == (FINISHED,):
        evidence.complaints += unsaid(fault.says, case.facts, _told(case, case.job))


def _told(case: Case, job: Job) -> str:
    """What a start showed, and what the run's logs hold."""
    logs = sorted((case.out / "logs").glob("*.log")) + sorted((case.out / "logs").glob("*.out"))
    return "\n".join([job.shown(), *(path.read_text(errors="replace") for path in logs)])


def _go_on(case: Case, evidence: Evidence) -> None:
    """The same command, until it has trained to the end: once, or twice where the input is at fault
    and has to be mended first."""
    fault = case.fault
    if evidence.statuses[-1] == FINISHED and fault.after is None:
        return
    if fault.after is not None:
        fault.after(case)
    if fault.refused:
        _again(case, evidence, REFUSED, fault.refused)
        fault.mend(case)
    _again(case, evidence, FINISHED, fault.then_says)


def _again(case: Case, evidence: Evidence, wanted: int, says: Sequence[str]) -> None:
    if None in evidence.statuses:
        return
    case.jobs.append(case.start(hooked=case.fault.lasting))
    if not _ended(case, evidence):
        return
    status, shown = evidence.statuses[-1], case.job.shown()
    if status != wanted:
        evidence.complaints.append(f"started again: status {status}: {shown[-1500:]}")
    evidence.complaints += unsaid(says, case.facts, shown)


def _cost(case: Case, before: int, *, survived: bool) -> Row:
    """Steps up to ``before`` that were computed again, and seconds from the fault to the first step
    beyond. Of a start that ``survived``, to its next step; where it then goes back on purpose, no
    step is lost."""
    lost = 0 if survived else before - resumed_at(case.out)
    beyond = first_beyond(case.out, before, case.hit)
    return {"lost": lost, "recovered_s": None if beyond is None else round(beyond - case.hit, 2)}


def campaign(site: Site, plan: Sequence[tuple[Fault, str, int]], seed: int, out: Path) -> None:
    """What of the plan ``out`` does not yet hold; a line on stderr for each."""
    done = {row["run"] for row in rows_of(out)}
    began, left = time.monotonic(), [one for one in plan if one[2] not in done]
    for count, (fault, layout, number) in enumerate(left, 1):
        row = run(site, fault, layout, number, seed)
        with open(out, "a") as handle:
            handle.write(json.dumps(row) + "\n")
        pace = (time.monotonic() - began) / count
        print(
            f"{len(done) + count}/{len(plan)}  {fault.name} ({layout}, {row['met']}): "
            f"{row['outcome']}, {row['seconds']:.1f} s; {pace * (len(left) - count) / 60:.0f} min "
            f"left{''.join(f'{chr(10)}    {text}' for text in row['complaints'])}",
            file=sys.stderr,
            flush=True,
        )


def of_another(rows: Sequence[Row], plan: Sequence[tuple[Fault, str, int]], seed: int) -> bool:
    """Whether rows are of other runs than a plan of that seed has under their numbers."""
    planned = {number: (fault.name, layout, seed) for fault, layout, number in plan}
    known = [(row["run"], (row["fault"], row["layout"], row["seed"])) for row in rows]
    return any(planned.get(number, what) != what for number, what in known)


def rows_of(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
