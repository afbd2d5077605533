"""The page of a profile: what bounds the step, what to do, and that it adds up."""

from dataclasses import replace

import pytest

from ovtrain.observability.profile.page import Measured, page, verdict
from ovtrain.observability.profile.trace import Operator, Reading

PARTS = {
    "data wait": 2.0,
    "forward": 30.0,
    "head": 5.0,
    "backward": 50.0,
    "communication": 5.0,
    "optimizer": 5.0,
    "other": 3.0,
}
READING = Reading(5, 100.0, PARTS, [Operator(f"op{i}", 9.0 - i, 2.0) for i in range(9)], None, None)
MEASURED = Measured(5, 90.0, 0.02, 100.0, 2e5, 1e12, None, 900.0, (80.0, 79.0), {})


def moved(name: str, ms: float) -> Reading:
    """``ms`` of the backward pass are spent on ``name`` instead."""
    parts = PARTS | {"backward": 50.0 - ms, name: PARTS.get(name, 0.0) + ms}
    return replace(READING, parts=parts, launches=812.0, syncs=3.0)


@pytest.mark.parametrize(
    ("reading", "measured", "words"),
    [
        (READING, MEASURED, ("the encoder: 80%", "micro_batch")),
        (
            READING,
            replace(MEASURED, data_wait=0.4, data_ms={"read": 1.0, "decode": 12.5}),
            ("data: the step waits 40%", "decode (12.5 ms)", "data.workers"),
        ),
        (
            moved("idle", 30.0),
            MEASURED,
            ("the host: the device idles 30%", "812 kernels", "3 waits"),
        ),
        (moved("communication", 30.0), MEASURED, ("communication", "35%", "run.zero_stage")),
        (
            moved("communication", 30.0),
            replace(MEASURED, own_ms=(80.0, 40.0)),
            ("own time 80 ms against a median of 40", "slow rank"),
        ),
        (moved("head", 40.0), MEASURED, ("the heads (45%)", "head.sample_rate")),
        (moved("optimizer", 40.0), MEASURED, ("the optimizer (45%)", "run.global_batch")),
        (moved("other", 40.0), MEASURED, ("no range names (43%",)),
    ],
)
def test_one_sentence_says_what_bounds_the_step_and_what_to_try(reading, measured, words):
    found = verdict(reading, measured)
    assert found.startswith("Bound by ")
    for word in words:
        assert word in found


def test_the_page_holds_the_parts_their_sum_and_the_ten_largest_operators():
    operators = [Operator(f"op{i}", 12.0 - i, 2.0) for i in range(12)]
    text = page("runs/a", "about", replace(READING, operators=operators), MEASURED)
    assert text.startswith("# Profile of runs/a\n\nabout\n")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "100.00" in rows["together"]
    assert "50.0%" in rows["backward"]
    assert "90.0 ms (+11% under the profiler)" in rows["step"]
    assert "not known" in rows["MFU"]
    assert "op9" in rows
    assert "op10" not in rows
    assert " 3.00" in rows["2 others"]
    assert len(text.splitlines()) < 50


def test_a_gpus_page_counts_launches_and_waits():
    text = page("a", "b", moved("idle", 30.0), replace(MEASURED, mfu=0.413))
    assert "kernel launches per step" in text
    assert "41.3%" in text
    assert "device" in text


def test_all_lines_of_a_table_are_equally_wide():
    long = replace(READING, operators=[Operator("x" * 300, 1.0, 1.0)])
    lines = page("a", "b", long, MEASURED).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("## Largest"))
    widths = {len(line) for line in lines[at:] if line.startswith("|")}
    assert len(widths) == 1
    assert max(widths) < 120
