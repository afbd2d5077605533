"""Processes: killed, signalled, stopped, defective, out of memory, slow."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from .case import Case
from .fault import FAILED, FINISHED, SAVED, Fault
from .judge import due
from .site import EVERY

QUICK = {"guards": {"step_timeout_s": 1.5, "save_timeout_s": 3.0}}
"""Limits of a test of the watchdog; the first step has ten times as long."""
HUNG = (
    r"step \d+ takes longer than 1\.5 s|saving takes longer than 3 s",
    r"error: rank \d on \S+: a step hung; where its threads stood is in logs/stacks-\d+\.txt",
)
ASKED = (SAVED, FINISHED)
"""The latter where the signal came with the last step."""
SAVED_ALL = r"saved after a signal; the same command resumes"
SAVED_WORDS = rf"{SAVED_ALL}|killed by signal 15 \(SIGTERM\)"
"""The latter where the signal came before the run could have saved anything."""
GRACE_S = 30.0
SLOW_S = 240.0
"""Of a start with all its imports, three processes at a time."""


def _rank(number: signal.Signals) -> Callable[[Case], None]:
    def inject(case: Case) -> None:
        case.moment()
        case.signal(case.some_rank(), number)

    return inject


def _launcher(number: signal.Signals) -> Callable[[Case], None]:
    def inject(case: Case) -> None:
        case.moment()
        case.job.signal(number)

    return inject


def kill_all(case: Case) -> None:
    """Everything of the run at once, as a lost node is."""
    case.moment()
    case.kill()


def kill_all_after(checkpoints: int) -> Callable[[Case], None]:
    def inject(case: Case) -> None:
        case.moment(early=False, least=1 + EVERY * checkpoints, checkpoints=checkpoints)
        case.kill()

    return inject


def _again_and_again(case: Case) -> None:
    """Three to five times, each start at a moment of its own; fewer near the end."""
    for left in reversed(range(case.random.randint(3, 5))):
        case.moment(least=case.job.due + 1)
        case.kill()
        if not left or due(case.out) > case.steps - 2 * EVERY:
            return
        case.begin(hooked=False)


def _with_grace(case: Case) -> None:
    case.moment()
    case.job.signal(signal.SIGUSR1)
    if case.job.wait(GRACE_S) is None:
        case.facts["grace"] = "over"


def _in_its_grace(case: Case) -> list[str]:
    return ["not ended 30 s after SIGUSR1"] if "grace" in case.facts else []


def _paused(case: Case) -> None:
    case.moment(early=False)
    pid = case.some_rank()
    case.signal(pid, signal.SIGSTOP)
    time.sleep(case.random.uniform(0.1, 2.0))
    case.signal(pid, signal.SIGCONT)


def _stuttering(case: Case) -> None:
    case.moment()
    for _ in range(case.random.randint(5, 15)):
        pid = case.some_rank()
        case.signal(pid, signal.SIGSTOP)
        time.sleep(case.random.uniform(0.02, 0.1))
        case.signal(pid, signal.SIGCONT)
        time.sleep(case.random.uniform(0, 0.05))
        if case.job.poll() is not None:
            return


def _stopped_for_good(case: Case) -> None:
    case.moment(early=False, least=2)
    case.signal(case.some_rank(), signal.SIGSTOP)


def patient(case: Case) -> None:
    """Limits as all other runs have them."""
    del case.settings["guards"]


def _torchrun(case: Case) -> None:
    """The process group of the command that a user typed."""
    case.moment()
    os.killpg(case.job.pid, signal.SIGKILL)


def _orphans(case: Case) -> None:
    """Nothing may go on beside the run that is started next."""
    case.job.wait(10)
    time.sleep(0.3)


def _named(rank_ends_by: signal.Signals) -> tuple[str]:
    number = int(rank_ends_by)
    return (rf"error: rank {{rank}} on \S+: killed by signal {number} \({rank_ends_by.name}\)",)


FAULTS = (
    Fault("rank killed", "process", _rank(signal.SIGKILL), (FAILED,), _named(signal.SIGKILL)),
    Fault("rank segfaults", "process", _rank(signal.SIGSEGV), (FAILED,), _named(signal.SIGSEGV)),
    Fault("all processes killed", "process", kill_all, (-signal.SIGKILL,)),
    Fault("launcher killed", "process", _launcher(signal.SIGKILL), (-signal.SIGKILL,)),
    Fault("killed again and again", "process", _again_and_again, (-signal.SIGKILL,), turns=1),
    Fault("SIGTERM", "signal", _launcher(signal.SIGTERM), ASKED, (SAVED_WORDS,)),
    Fault(
        *("SIGUSR1, 30 s grace", "signal", _with_grace, ASKED, (SAVED_WORDS,)),
        check=_in_its_grace,
    ),
    Fault("SIGINT", "signal", _launcher(signal.SIGINT), ASKED, (SAVED_WORDS,)),
    Fault(
        *("SIGTERM to one rank", "signal", _rank(signal.SIGTERM), (FAILED, FINISHED)),
        says=(
            rf"rank \d on \S+: .*{SAVED_ALL}|"  # all ranks save, and the first to end is named
            r"rank {rank} on \S+: killed by signal 15 \(SIGTERM\)",
        ),
    ),
    Fault("rank paused (SIGSTOP, SIGCONT)", "signal", _paused, (FINISHED,)),
    Fault("ranks stutter (a train of them)", "signal", _stuttering, (FINISHED,)),
    Fault(
        *("rank stopped for good", "signal", _stopped_for_good, (FAILED,)),
        says=(*HUNG, r"; rank {rank} did not end, and may be what the others wait for"),
        settings=QUICK, after=patient,
    ),
    Fault(
        *("rank runs out of memory", "process", Case.met_at_step, (FAILED,)),
        says=(r"error: rank {rank} on \S+: .*can't allocate memory",),
        prepare=lambda case: case.hook_at_step("memory", least=1),
    ),
    Fault(
        *("defect in a rank", "process", Case.met_at_step, (FAILED,)),
        says=(r"error: rank {rank} on \S+: KeyError: 'a defect of this rank'",),
        prepare=lambda case: case.hook_at_step("defect", least=1),
    ),
    Fault(
        *("rank is slow", "process", Case.met_at_step, (FINISHED,)),
        says=(r"rank {rank} on \S+ is slow: \d+ ms of its own per step",),
        prepare=lambda case: case.hook_at_step("slow", seconds=0.4),
        settings={"guards": {"slow_rank": 1.5}},
    ),
    Fault(
        *("torchrun's launcher killed", "real command", _torchrun, (-signal.SIGKILL,)),
        after=_orphans, real=True, turns=1, bound_s=SLOW_S,
    ),
    Fault(
        *("SIGTERM to ovtrain train", "real command", _launcher(signal.SIGTERM)),
        statuses=(SAVED, 128 + signal.SIGTERM),
        says=(r"the same command resumes|ended by signal 15, unsaved since the newest checkpoint",),
        real=True, turns=1, bound_s=SLOW_S,
    ),
    Fault(
        *("rank killed under torchrun", "real command", _rank(signal.SIGKILL)),
        statuses=(FAILED, 128 + signal.SIGKILL),
        says=(r"ended by signal 9 \(first failing rank: {rank}\)",),
        real=True, turns=1, bound_s=SLOW_S,
    ),
)  # fmt: skip
