"""What the campaign of faults makes of starts: where they go on, how far they come, and those that
are over before their fault."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ovtrain.checkpoint import storage
from ovtrain.schema.atomic import file_sha256
from tests.helpers.benchmark_modules import benchmark_module
from tests.unit.benchmarks.test_faults_judge import write_run

campaign, case = benchmark_module("faults.campaign"), benchmark_module("faults.case")
judge, fault, jobs = (benchmark_module(f"faults.{name}") for name in ("judge", "fault", "jobs"))


class Ended(jobs.Job):
    """A start that ended so; None: it never did."""

    def __init__(self, status: int | None, **known: Any) -> None:
        super().__init__(0, Path("output.txt"))
        self._status = status
        vars(self).update(known)

    def poll(self) -> int | None:
        return self._status

    def wait(self, seconds: float) -> int | None:
        return self._status

    def end(self) -> None:
        pass


def save(out: Path, step: int) -> Path:
    temp, final = out / "checkpoints" / ".temp", out / "checkpoints" / storage.step_name(step)
    storage.begin(temp)
    (temp / "weights").write_text(str(step))
    entry = {"bytes": len(str(step)), "sha256": file_sha256(temp / "weights")}
    storage.seal(temp, final, {"step": step}, {"weights": entry})
    return final


def test_a_start_has_to_go_on_from_the_newest_sound_checkpoint(tmp_path: Path):
    assert judge.due(tmp_path) == 0
    steps = {step: save(tmp_path, step) for step in (4, 8, 12)}
    assert judge.due(tmp_path) == 12
    (steps[12] / "weights").write_text("x")
    assert judge.due(tmp_path) == 8
    (steps[8] / "manifest.json").write_text("{")
    assert judge.due(tmp_path) == 4
    (tmp_path / "checkpoints" / "latest").write_text("step-00000099\n")
    assert judge.due(tmp_path) == 4


def test_a_run_that_was_set_back_has_to_go_on_from_there(tmp_path: Path):
    for step in (4, 8):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000004\n")
    assert judge.due(tmp_path) == 4


@pytest.mark.parametrize(
    ("status", "due", "firsts", "wrong"),
    [
        (0, 8, [8], False),
        (0, 8, [0], True),  # began again
        (0, 8, [4], True),
        (0, 8, [], True),
        (0, 0, [0], False),
        (0, 8, [8, 8], True),  # somebody else began, too
        (0, 20, [], False),  # trained to the end before it was killed
        (0, 20, [16], True),
        (-9, 8, [], False),  # killed before it began
        (-9, 8, [4], True),
        (2, 8, [8], False),
    ],
)
def test_a_start_that_goes_on_from_elsewhere_is_told_of(
    status: int, due: int, firsts: list[int], *, wrong: bool
):
    told = judge.misbegun(Ended(status, due=due, firsts=firsts), 20)
    assert bool(told) == wrong


def test_steps_lost_are_those_of_all_starts():
    killed = [Ended(-9, firsts=[0], last=7), Ended(-9, last=0), Ended(-9, firsts=[4], last=0)]
    assert judge.lost_steps([*killed, Ended(0, firsts=[4], last=20)]) == 3
    assert judge.lost_steps([*killed, Ended(-9, firsts=[4], last=10), Ended(0, firsts=[8])]) == 5
    assert judge.lost_steps([Ended(2, firsts=[0], last=6), Ended(2), Ended(0, firsts=[4])]) == 2


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """A case whose start has ended."""
    site = SimpleNamespace(folder=tmp_path / "site", data=tmp_path / "data")
    kind = fault.Fault("none", "", fault.nothing, (0,))
    made = case.Case(site, kind, tmp_path / "run-0000", "ddp", 0)
    made.jobs.append(Ended(0, began=1.5))
    write_run(made.out)
    return made


def test_moments_count_what_the_newest_start_wrote(made: Any):
    made.note()
    assert (made.reached(), made.when) == (2, "training")
    temp = made.out / "checkpoints" / ".step-00000004.tmp"
    temp.mkdir()
    made.note()
    assert made.when == "saving"
    made.job.began = time.time() + 1
    made.note()
    assert (made.reached(), made.when) == (0, "starting")
    os.utime(temp, (time.time() + 2, time.time() + 2))
    made.note()
    assert made.when == "saving"
    made.look()
    assert (made.job.firsts, made.job.last) == ([], 0)


def test_evidence_that_goes_with_a_mount_is_copied(made: Any, tmp_path: Path):
    made.passing.append(tmp_path / "disk")
    made.close(keep=True)  # nothing was mounted yet
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "metrics.jsonl").touch()
    made.close(keep=False)
    assert not (made.folder / "kept").exists()
    made.close(keep=True)
    assert (made.folder / "kept" / "disk" / "metrics.jsonl").is_file()


def early_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, loss: float
) -> Any:
    """Of a kind whose starts are all over before its moment, with such an end."""
    write_run(tmp_path / "undisturbed")

    def begin(self: Any, **_given: Any) -> None:
        write_run(self.out, loss)
        self.jobs.append(Ended(status, began=0.0))

    monkeypatch.setattr(case.Case, "reference", lambda self: tmp_path / "undisturbed")
    monkeypatch.setattr(case.Case, "begin", begin)
    site = SimpleNamespace(folder=tmp_path, data=tmp_path / "data")
    kind = fault.Fault("late", "", case.Case.over, (1, -9), (r"rank \d",))
    return campaign.run(site, kind, "ddp", 3, 0)


@pytest.mark.parametrize(
    ("status", "loss", "outcome", "repeats"),
    [
        (0, 1.5, "wrong", campaign.TRIES - 1),  # again and again
        (0, 1.25, "wrong", 0),
        (1, 1.5, "wrong", 0),  # a status that its fault would have had
        (-9, 1.5, "wrong", 0),
        (None, 1.5, "hang", 0),
    ],
)
def test_a_start_over_before_its_moment_is_repeated_only_where_its_end_is_sound(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int | None,
    loss: float,
    outcome: str,
    repeats: int,
):
    row = early_row(tmp_path, monkeypatch, status, loss)
    assert (row["outcome"], row["repeats"]) == (outcome, repeats)
    assert row["statuses"] == [status]
    assert "its moment did not come" in row["complaints"]
    assert (tmp_path / "run-0003").exists()
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize(("status", "outcome"), [(1, "wrong"), (None, "hang")])
def test_an_undisturbed_run_that_does_not_end_well_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, outcome: str
):
    def reference(self: Any) -> Path:
        raise case.Unsound(status, "a decoder that hangs")

    monkeypatch.setattr(case.Case, "reference", reference)
    site = SimpleNamespace(folder=tmp_path, data=tmp_path / "data")
    row = campaign.run(site, campaign.FAULTS["loss spike"], "ddp", 0, 0)
    assert (row["outcome"], row["statuses"]) == (outcome, [status])
    assert "a decoder that hangs" in row["complaints"][0]
