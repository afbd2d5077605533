"""Numbers that are none: NaN, infinities, spikes."""

from __future__ import annotations

import signal

from ovtrain.observability.history import read_events

from .case import Case
from .fault import REFUSED, Fault, Work
from .process import kill_all

STEPS_OF_SPIKE = 44
"""Beyond the losses that the detector wants to have seen."""
SAMPLE = (
    r"step {update}: 1 samples with an embedding .* rank {rank}, source (video|image), "
    r"sample (video|image)-\d+\.tar/(video|image)-\d+ .*stopped before the update"
)


def _poison(place: str, value: str) -> Work:
    def prepare(case: Case) -> None:
        case.hook_at_step("poison", least=1, place=place, value=value)

    return prepare


def _stops(name: str, place: str, value: str, says: str = SAMPLE) -> Fault:
    return Fault(
        name, "number", Case.met_at_step, (REFUSED,), (says,), prepare=_poison(place, value)
    )


def _spike(case: Case) -> None:
    case.hook_at_step("spike", least=36)
    assert case.hook is not None
    case.hook["rank"] = -1  # the loss is that of all ranks


def _on_record(case: Case, kind: str) -> list[str]:
    found = [r for r in read_events(case.out / "metrics.jsonl") if r.get("kind") == kind]
    steps = [row["step"] for row in found]
    return [] if steps == [case.facts["update"]] else [f"{kind} on record of steps {steps}"]


FAULTS = (
    _stops("NaN loss", "embedding", "nan"),
    _stops("Inf gradient", "layer gradient", "inf"),
    _stops("Inf in a loss's gradient", "loss gradient", "inf"),
    _stops(
        "NaN gradient of a parameter", "parameter gradient", "nan",
        r"step {update}: not finite: the encoder .*stopped before the update",
    ),
    Fault(
        "NaN loss, steps skipped", "number", kill_all, (-signal.SIGKILL,),
        prepare=_poison("embedding", "nan"), settings={"guards": {"on_nonfinite": "skip"}},
        check=lambda case: _on_record(case, "skipped"), lasting=True,
    ),
    Fault(
        "loss spike", "number", kill_all, (-signal.SIGKILL,), prepare=_spike,
        settings={"steps": STEPS_OF_SPIKE}, lasting=True,
        check=lambda case: _on_record(case, "spike"), turns=1,
    ),
)  # fmt: skip
