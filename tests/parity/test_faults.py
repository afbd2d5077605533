"""A part of the campaign of faults, and what its judge has to call wrong or hung."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovtrain.checkpoint import storage
from ovtrain.schema.atomic import file_sha256
from tests.helpers.benchmark_modules import benchmark_module

campaign = benchmark_module("faults.campaign")
shared, fault = benchmark_module("faults.site"), benchmark_module("faults.fault")
jobs, process = benchmark_module("faults.jobs"), benchmark_module("faults.process")
SOME = (
    *("rank killed", "all processes killed", "SIGTERM", "worker segfaults", "disk full"),
    *(
        "checkpoint file torn",
        "bit flipped in a checkpoint",
        "truncated video",
        "label out of range",
    ),
    *("NaN loss", "all connections of a rank closed", "connections delayed", "port in use"),
    "other world size",
)
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = shared.Site(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


@pytest.mark.parametrize("name", SOME)
def test_what_a_fault_leaves_is_what_was_promised(site: Any, name: str):
    number = SOME.index(name)
    kind = campaign.FAULTS[name]
    layouts = [layout for layout in shared.LAYOUTS if layout not in kind.not_under]
    layout = layouts[number % len(layouts)]
    if campaign.left_out([kind]):
        pytest.skip(f"may not {kind.needs}")
    row = campaign.run(site, kind, layout, number, seed=0)
    assert row["outcome"] not in fault.BAD, row


def reseal(of: Any) -> None:
    """A weight of the newest checkpoint is another one, by its manifest too."""
    step = of.checkpoints()[-1]
    path = sorted(step.glob("encoder-*"))[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    entries = storage.read_manifest(step) | {
        path.name: {"bytes": len(data), "sha256": file_sha256(path)}
    }
    storage.seal(step, step.with_name("whole"), storage.read_state(step), entries)
    step.with_name("whole").rename(step)
    (step.parent / "latest").write_text(step.name + "\n")


def test_a_run_that_goes_on_from_another_weight_is_wrong(site: Any):
    killed = (-signal.SIGKILL,)
    kind = fault.Fault("resealed", "", process.kill_all_after(1), killed, after=reseal)
    row = campaign.run(site, kind, "ddp", 100, seed=0)
    assert row["outcome"] == fault.WRONG
    assert "grad_norm" in json.dumps(row["complaints"])


def test_a_run_that_begins_again_at_step_0_is_wrong(
    site: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Its end is the undisturbed run's: runs are deterministic."""
    start, folder = jobs.Zygote.start, site.folder / "run-0102"

    def forgetful(*given: Any, **named: Any) -> Any:
        if (found := folder / "run" / "checkpoints").exists():
            found.rename(tmp_path / "checkpoints")
        return start(*given, **named)

    monkeypatch.setattr(jobs.Zygote, "start", forgetful)
    kind = fault.Fault("forgetful", "", process.kill_all_after(1), (-signal.SIGKILL,))
    row = campaign.run(site, kind, "ddp", 102, seed=0)
    assert row["outcome"] == fault.WRONG
    assert row["statuses"] == [-signal.SIGKILL, fault.FINISHED]
    (complaint,) = row["complaints"]
    assert re.fullmatch(r"went on from step \[0\], not \[\d+\]", complaint)


def stop_launcher(of: Any) -> None:
    of.moment(early=False)
    of.job.signal(signal.SIGSTOP)


def wait_for_ever(of: Any) -> None:
    of.until(lambda: bool(of.job_ranks()))
    of.job.signal(signal.SIGSTOP)
    of.until(lambda: False)


@pytest.mark.parametrize(("inject", "met"), [(stop_launcher, True), (wait_for_ever, False)])
def test_a_start_that_never_ends_is_a_hang_before_its_moment_too(
    site: Any, inject: Any, *, met: bool
):
    kind = fault.Fault("launcher stopped", "", inject, (1,), bound_s=8.0)
    row = campaign.run(site, kind, "ddp", 101, seed=0)
    assert row["outcome"] == fault.HANG
    assert bool(row["met"]) == met


def test_the_campaign_goes_on_where_it_stopped(site: Any, tmp_path: Path):
    kinds = [campaign.FAULTS["SIGTERM"]]
    out = tmp_path / "runs.jsonl"
    for runs in (1, 2, 2):
        campaign.campaign(site, campaign.schedule(kinds, runs), 0, out)
    assert [row["run"] for row in campaign.rows_of(out)] == [0, 1]
