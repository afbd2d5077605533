"""A part of the campaign of faults, and two faults that its judge has to find."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovtrain.checkpoint import storage
from ovtrain.schema.atomic import file_sha256
from tests.helpers.benchmark_modules import benchmark_module

campaign = benchmark_module("faults.campaign")
case, fault = benchmark_module("faults.case"), benchmark_module("faults.fault")
disk, process = benchmark_module("faults.disk"), benchmark_module("faults.process")
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
    made = case.Site(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


@pytest.mark.parametrize("name", SOME)
def test_what_a_fault_leaves_is_what_was_promised(site: Any, name: str):
    number = SOME.index(name)
    kind, layout = campaign.FAULTS[name], list(case.LAYOUTS)[number % 4]
    if kind.mounts and not disk.may_mount():
        pytest.skip("needs the right to mount")
    row = campaign.run(site, kind, layout, number, seed=0)
    assert row["outcome"] in (fault.EXACT, fault.NAMED), row


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


def stop_launcher(of: Any) -> None:
    of.moment(early=False)
    of.job.signal(signal.SIGSTOP)


def test_a_run_that_goes_on_from_another_weight_is_wrong(site: Any):
    killed = (-signal.SIGKILL,)
    kind = fault.Fault("resealed", "", process.kill_all_after(1), killed, after=reseal)
    row = campaign.run(site, kind, "ddp", 100, seed=0)
    assert row["outcome"] == fault.WRONG
    assert "grad_norm" in json.dumps(row["complaints"])


def test_a_launcher_that_never_ends_is_a_hang(site: Any):
    kind = fault.Fault("launcher stopped", "", stop_launcher, (1,), bound_s=4.0)
    assert campaign.run(site, kind, "ddp", 101, seed=0)["outcome"] == fault.HANG


def test_the_campaign_goes_on_where_it_stopped(site: Any, tmp_path: Path):
    kinds = [campaign.FAULTS["SIGTERM"]]
    out = tmp_path / "runs.jsonl"
    for runs in (1, 2, 2):
        campaign.campaign(site, campaign.schedule(kinds, runs), 0, out)
    assert [row["run"] for row in campaign.rows_of(out)] == [0, 1]
