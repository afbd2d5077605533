"""The demo's real jobs, tiny: generated clips to report, and a second call that runs nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.world import environment, succeed

TINY = [
    "train_clips=130",
    "heldout_clips=52",
    "seeds=1",
    "probe_set=[token_budget=192,chunks=3,epochs=1]",
    "stage1_set=[run.steps=2,run.checkpoint_every=2]",
    "stage2_set=[run.steps=3,run.checkpoint_every=3]",
]


def demo(out: Path) -> str:
    command = [sys.executable, "-m", "launch.cli", "demo", "--out", str(out), *TINY]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    return succeed(done)


@pytest.mark.full
def test_the_demo_runs_to_its_report_and_a_second_call_has_nothing_to_do(tmp_path: Path):
    printed = demo(tmp_path / "demo")
    assert "report.html" in printed
    result = json.loads((tmp_path / "demo/probe/result.json").read_text())
    assert {row["encoder"] for row in result["rows"]} == {
        "trained",
        "untrained",
        "shuffled labels",
    }
    assert all(0 <= row["mean"] <= 1 for row in result["rows"])
    first = json.loads((tmp_path / "demo/stages.json").read_text())
    assert {stage["status"] for stage in first} == {"ran"}
    demo(tmp_path / "demo")
    second = json.loads((tmp_path / "demo/stages.json").read_text())
    assert {stage["status"] for stage in second} == {"skipped"}
