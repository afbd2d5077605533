"""One page on a profile: numbers, the parts of a step, the largest operators, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ovtrain.observability.profile.trace import COMMUNICATION, IDLE, OTHER, Reading

TOP = 10
BAR = 24


@dataclass(frozen=True)
class Measured:
    """Of the steps without the profiler. Rates are of all ranks together; ``data_wait``: rank 0's
    share (0..1); ``mfu`` None where the device's peak is not known; ``memory_mib``: of the rank
    that held most; ``own_ms``: slowest rank's and median (ovtrain.observability.ranks);
    ``data_ms``: rank 0's work per sample by stage."""

    steps: int
    step_ms: float
    data_wait: float
    samples_per_s: float
    tokens_per_s: float
    flops_per_s: float
    mfu: float | None
    memory_mib: float
    own_ms: tuple[float, float]
    data_ms: Mapping[str, float]


def verdict(reading: Reading, measured: Measured) -> str:
    """What bounds the step, and what to try; the first bound that is large counts. Waiting for data
    is taken from the steps without the profiler, whose slower steps leave the loader more time."""
    share = {name: ms / reading.step_ms for name, ms in reading.parts.items()}

    def of(name: str) -> float:
        return share.get(name, 0.0)

    if measured.data_wait >= 0.15:
        return (
            f"Bound by data: the step waits {measured.data_wait:.0%} of its time for its batch"
            f"{_costliest(measured.data_ms)}. Raise data.workers while there are idle cores, keep "
            "shards on a local disk (data.shard_cache), or store smaller clips."
        )
    if of(IDLE) >= 0.2:
        launches = f"{reading.launches or 0:,.0f} kernels and {reading.syncs or 0:,.0f} waits"
        return (
            f"Bound by the host: the device idles {of(IDLE):.0%} of the time while the host sends "
            f"it {launches} per step. Raise run.micro_batch, try model.compile=true, and give each "
            "rank more cores."
        )
    if of(COMMUNICATION) >= 0.25:
        slowest, middle = measured.own_ms
        uneven = slowest > 1.2 * middle
        return (
            f"Bound by communication: collectives hold the step up for {of(COMMUNICATION):.0%} of "
            "its time. "
            + (
                f"Ranks are uneven (own time {slowest:.0f} ms against a median of {middle:.0f}), "
                "and the fast ones wait in it: find the slow rank first."
                if uneven
                else "Raise run.global_batch or run.micro_batch, lower run.zero_stage if memory "
                "allows, and check the network."
            )
        )
    if of("head") >= 0.35:
        return (
            f"Bound by the heads ({of('head'):.0%}). Lower head.sample_rate, or share the class "
            "rows among more ranks."
        )
    if of("optimizer") >= 0.3:
        return (
            f"Bound by the optimizer ({of('optimizer'):.0%}). A larger run.global_batch makes it "
            "seldom; run.zero_stage shares it among ranks."
        )
    if of(OTHER) >= 0.25:
        return (
            f"Bound by what no range names ({of(OTHER):.0%} of the step): open the trace and look "
            "at the gaps between the ranges."
        )
    return (
        f"Bound by the encoder: {of('forward') + of('backward'):.0%} of the step is its forward "
        "and backward pass. If memory allows, model.recompute=0 and a larger run.micro_batch; on a "
        "GPU model.compile=true and model.attention=auto."
    )


def _costliest(data_ms: Mapping[str, float]) -> str:
    if not data_ms:
        return ""
    stage = max(data_ms, key=lambda name: data_ms[name])
    return f", most of a sample's making is {stage} ({data_ms[stage]:.1f} ms)"


def page(title: str, about: str, reading: Reading, measured: Measured) -> str:
    """Markdown that reads well as plain text. ``about``: what ran where."""
    lines = [f"# Profile of {title}", "", about, "", f"**{verdict(reading, measured)}**", ""]
    lines += _table(("what", "value"), _numbers(reading, measured))
    lines += ["", "## Where a step goes", ""]
    lines += _table(("part", "ms per step", "share", ""), _parts(reading))
    lines += ["", f"## Largest operators (own time, {_clock(reading)})", ""]
    lines += _table(("operator", "ms per step", "share", "calls per step"), _operators(reading))
    return "\n".join(lines) + "\n"


def _clock(reading: Reading) -> str:
    return "host" if reading.launches is None else "device"


def _numbers(reading: Reading, measured: Measured) -> list[tuple[str, ...]]:
    slower = reading.step_ms / measured.step_ms - 1
    rows = [
        ("step", f"{measured.step_ms:,.1f} ms ({slower:+.0%} under the profiler)"),
        ("waiting for data", f"{measured.data_wait:.1%}"),
        ("samples/s", f"{measured.samples_per_s:,.1f}"),
        ("tokens/s", f"{measured.tokens_per_s:,.0f}"),
        ("model TFLOP/s", f"{measured.flops_per_s / 1e12:,.3f}"),
        ("MFU", "peak of the device not known" if measured.mfu is None else f"{measured.mfu:.1%}"),
        ("peak memory of a rank", f"{measured.memory_mib:,.0f} MiB"),
    ]
    if reading.launches is not None and reading.syncs is not None:
        rows.append(("kernel launches per step", f"{reading.launches:,.0f}"))
        rows.append(("host waits for the device per step", f"{reading.syncs:,.0f}"))
    return rows


def _parts(reading: Reading) -> list[tuple[str, ...]]:
    rows = [
        (
            name,
            f"{ms:.2f}",
            f"{ms / reading.step_ms:.1%}",
            ("#" * round(BAR * ms / reading.step_ms)).ljust(BAR),
        )
        for name, ms in reading.parts.items()
    ]
    return [*rows, ("together", f"{sum(reading.parts.values()):.2f}", "100.0%", "")]


def _operators(reading: Reading) -> list[tuple[str, ...]]:
    shown = [
        (one.name, f"{one.ms:.2f}", f"{one.ms / reading.step_ms:.1%}", f"{one.calls:,.1f}")
        for one in reading.operators[:TOP]
    ]
    rest = reading.operators[TOP:]
    ms = sum(one.ms for one in rest)
    others = (f"{len(rest)} others", f"{ms:.2f}", f"{ms / reading.step_ms:.1%}", "")
    return [*shown, others] if rest else shown


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cut = [tuple(cell if len(cell) <= 60 else cell[:57] + "..." for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in [head, *cut]) for i in range(len(head))]

    def line(cells: tuple[str, ...]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(head), "| " + " | ".join(rule) + " |", *map(line, cut)]
