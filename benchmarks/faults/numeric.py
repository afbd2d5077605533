"""Numbers that are none: NaN, infinities, spikes."""

from __future__ import annotations

import re
import signal

from ovtrain.observability.history import METRICS, Row, read_events

from .case import Case
from .fault import REFUSED, Fault, Work
from .process import kill_all
from .site import TENSOR
from .within import POISONED

PARAMETER = "parameter gradient"
STEPS_OF_SPIKE = 44
"""Beyond the losses that the detector wants to have seen."""
SAMPLE = (
    r"step {update}: 1 samples with an embedding .* rank {rank}, {sample} .*"
    r"stopped before the update"
)


def _poison(place: str, value: str) -> Work:
    """In a random rank. Of tensor ranks, which meet the same samples, in the first, which tells of
    them, and holds the first one's tokens; but in a parameter's gradient, which is no sample's."""

    def prepare(case: Case) -> None:
        case.hook_at_step("poison", least=1, place=place, value=value)
        if case.layout == TENSOR and place != PARAMETER:
            assert case.hook is not None
            case.hook["rank"] = case.facts["rank"] = 0

    return prepare


def _meet(case: Case) -> None:
    case.met_at_step()
    case.until(lambda: bool(_poisoned(case)) or case.job.poll() is not None)
    case.facts["sample"] = ", ".join(_poisoned(case))


def _poisoned(case: Case) -> set[str]:
    """The sample, as the rank that it was poisoned in knows it."""
    logs = [path.read_text(errors="replace") for path in (case.out / "logs").glob("rank-*.out")]
    return {found for text in logs for found in re.findall(f"^{POISONED}(.+)$", text, re.M)}


def _stops(name: str, place: str, value: str, says: str = SAMPLE) -> Fault:
    return Fault(name, "number", _meet, (REFUSED,), (says,), prepare=_poison(place, value))


def _spike(case: Case) -> None:
    case.hook_at_step("spike", least=36)
    assert case.hook is not None
    case.hook["rank"] = -1  # the loss is that of all ranks


def _skipped(case: Case) -> list[str]:
    found = [r["message"] for r in _records(case, "skipped")]
    named = _poisoned(case)
    unnamed = [text for text in found if not any(name in text for name in named)]
    return _on_record(case, "skipped") + [f"names none of {named}: {text}" for text in unnamed]


def _records(case: Case, kind: str) -> list[Row]:
    return [r for r in read_events(case.out / METRICS) if r.get("kind") == kind]


def _on_record(case: Case, kind: str) -> list[str]:
    steps = [row["step"] for row in _records(case, kind)]
    return [] if steps == [case.facts["update"]] else [f"{kind} on record of steps {steps}"]


FAULTS = (
    _stops("NaN loss", "embedding", "nan"),
    _stops("Inf gradient", "layer gradient", "inf"),
    _stops("Inf in a loss's gradient", "loss gradient", "inf"),
    _stops(
        "NaN gradient of a parameter", PARAMETER, "nan",
        r"step {update}: not finite: the encoder .*stopped before the update",
    ),
    Fault(
        "NaN loss, steps skipped", "number", kill_all, (-signal.SIGKILL,),
        prepare=_poison("embedding", "nan"), settings={"guards": {"on_nonfinite": "skip"}},
        check=_skipped, lasting=True,
    ),
    Fault(
        "loss spike", "number", kill_all, (-signal.SIGKILL,), prepare=_spike,
        settings={"steps": STEPS_OF_SPIKE}, lasting=True,
        check=lambda case: _on_record(case, "spike"), turns=1,
    ),
)  # fmt: skip
