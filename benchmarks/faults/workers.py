"""Loader workers and decoders: killed, crashed, hung, out of memory."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ovtrain.schema.isolated import DIED, OUT_OF_MEMORY, TIMED_OUT
from tests.helpers.damage import HARMFUL

from .case import Case
from .fault import FINISHED, Fault
from .judge import quarantined
from .process import kill_all
from .site import SAMPLES

ONE = {"data": {"workers": 1}}
IMPATIENT = {"data": {"workers": 1, "sample_timeout_s": 2.0}}
MEMORY = {"data": {"workers": 1, "worker_memory_mib": 400}}
HARMED = "harmed"
"""Part of the key of a sample whose payload does harm."""


def _worker(case: Case, number: signal.Signals) -> None:
    case.moment(early=False)
    case.signal(case.worker(), number)


def _worker_while_early(case: Case, number: signal.Signals) -> None:
    """Early enough for a task to come."""
    case.until(lambda: len(case.job_ranks()) == case.processes)
    step = case.random.randint(1, case.steps // 2)
    case.until(lambda: case.reached() >= step)
    case.note()
    case.signal(case.worker(), number)


def _lost(category: str, case: Case) -> list[str]:
    """Exactly one sample was lost, before the run went back."""
    lost = case.facts.get("lost", [])
    return [] if len(lost) == 1 and lost[0][2] == category else [f"lost {lost}, not one {category}"]


def _note_lost_and_go_back(case: Case) -> None:
    case.facts["lost"] = quarantined(case.out)
    case.go_back()


def _harmful(harm: str, case: Case) -> None:
    """One sample of each kind does it; all starts have a decoder that lets it."""
    hurt = {kind: case.random.randrange(SAMPLES) for kind in HARMFUL}

    def damage(kind: str, number: int, given: dict[str, bytes]) -> dict[str, bytes]:
        if number != hurt[kind]:
            return given
        member = "jpg" if kind == "image" else "mp4"
        change = HARMFUL[kind][f"{harm}-in-{member}"].change
        return change(given, np.random.default_rng(0))

    case.own_data(damage)
    case.hook = {"name": "harmful_decoder", "rank": -1}
    case.facts["hurt"] = sorted(f"{kind}-{number:04d}" for kind, number in hurt.items())


def _named(category: str, case: Case) -> list[str]:
    found = {(name.split("/")[1], why) for _, name, why, _ in quarantined(case.out)}
    hurt: list[str] = case.facts["hurt"]
    wanted = {(name, category) for name in hurt}
    return [] if found == wanted else [f"quarantine names {found}, not {wanted}"]


def _decoder(name: str, harm: str, category: str, settings: Mapping[str, Any]) -> Fault:
    return Fault(
        *(name, "worker", kill_all, (-signal.SIGKILL,)),
        prepare=partial(_harmful, harm), check=partial(_named, category),
        settings=settings, lasting=True,
    )  # fmt: skip


FAULTS = (
    Fault(
        "worker killed", "worker", partial(_worker, number=signal.SIGKILL), (FINISHED,),
        settings=ONE,
    ),
    Fault(
        "worker segfaults", "worker", partial(_worker_while_early, number=signal.SIGSEGV),
        (FINISHED,), (r"skipped \S+/\S+: worker process died \(exit code -11\)",),
        after=_note_lost_and_go_back, check=partial(_lost, DIED), settings=ONE,
    ),
    Fault(
        "worker hangs (SIGSTOP)", "worker", partial(_worker_while_early, number=signal.SIGSTOP),
        (FINISHED,), (r"skipped \S+/\S+: timed out \(more than 2 s\)",),
        after=_note_lost_and_go_back, check=partial(_lost, TIMED_OUT), settings=IMPATIENT,
    ),
    _decoder("decoder segfaults", "segfault", DIED, ONE),
    _decoder("decoder hangs", "hang", TIMED_OUT, IMPATIENT),
    _decoder("decoder takes all memory", "grow", OUT_OF_MEMORY, MEMORY),
    _decoder("defect in the decoder", "defect", DIED, ONE),
)  # fmt: skip
