"""The judge of the fault campaign can say wrong and hang, and its table counts what it said."""

import json
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from ovtrain.checkpoint import storage
from ovtrain.schema.atomic import file_sha256
from tests.helpers.benchmark_modules import benchmark_module

campaign = benchmark_module("faults.campaign")
judge, fault, jobs = (benchmark_module(f"faults.{name}") for name in ("judge", "fault", "jobs"))
network, table = benchmark_module("faults.network"), benchmark_module("faults.table")
shared = benchmark_module("faults.site")
KINDS = list(campaign.FAULTS.values())
SPEECHLESS = {-signal.SIGKILL, 0}
OF_NOBODY = {
    *("SIGTERM", "SIGUSR1, 30 s grace", "SIGINT", "SIGTERM to ovtrain train"),  # to all ranks
    *("disk full", "run directory read-only"),  # all ranks'
    *("all connections of a rank closed", "some connections of a rank closed"),
    *("connections go silent", "a node never comes"),
    *("too many bad samples in a row", "shards replaced before a resumption"),
    *("all checkpoints gone", "config changed before a resumption"),
}
"""Kinds whose words have no rank, file or sample of the case in them; docs/faults.md says why."""


def write_run(out: Path, loss: float = 1.5, weights: bytes = b"weights") -> None:
    """Two logged steps, a checkpoint, a sample that was not used."""
    rows: list[dict[str, Any]] = [
        {"event": "start", "step": 0, "time": 0.5},
        {"step": 1, "time": 1.0, "loss": 2.5, "views": {"codec": 1, "frames": 2}},
        {"step": 2, "time": 2.0, "loss": loss, "views": {"codec": 2, "frames": 4}},
    ]
    temp, final = out / "checkpoints" / ".temp", out / "checkpoints" / storage.step_name(2)
    storage.begin(temp)
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = {"source": "image", "name": "a.tar/b", "reason": "cut short (7 bytes)", "step": 2}
    (out / "quarantine-00000.jsonl").write_text(json.dumps(bad) + "\n")
    file = temp / "encoder-00000-of-00001.safetensors"
    file.write_bytes(weights)
    entries = {file.name: {"bytes": len(weights), "sha256": file_sha256(file)}}
    storage.seal(temp, final, {"step": 2, "train": {"step": 2, "loss": loss}}, entries)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("found", "undisturbed"):
        write_run(tmp_path / name)
    return tmp_path / "found", tmp_path / "undisturbed"


def differences(pair: tuple[Path, Path], *, close: bool = False) -> str:
    return "; ".join(judge.differences(*pair, close=close))


def test_equal_runs_have_no_differences(pair: tuple[Path, Path]):
    assert differences(pair) == ""


def test_another_byte_of_a_weight_is_a_difference(pair: tuple[Path, Path]):
    shutil.rmtree(pair[0])
    write_run(pair[0], weights=b"Weights")
    assert "safetensors has other bytes" in differences(pair)


def test_the_last_bit_of_a_loss_is_a_difference_and_on_another_world_size_a_small_one_is_none(
    pair: tuple[Path, Path],
):
    shutil.rmtree(pair[0])
    write_run(pair[0], loss=1.5 + 2**-52)
    assert "step 2, loss" in differences(pair)
    assert differences(pair, close=True) == ""
    shutil.rmtree(pair[0])
    write_run(pair[0], loss=1.5001)
    assert "step 2, loss" in differences(pair, close=True)


def test_a_row_too_few_or_twice_is_a_difference(pair: tuple[Path, Path]):
    path = pair[0] / "metrics.jsonl"
    lines = path.read_text().splitlines()
    for kept in (lines[:-1], [*lines, lines[-1]]):
        path.write_text("\n".join(kept) + "\n")
        assert "rows of steps" in differences(pair)


def test_a_sample_that_is_not_named_and_a_file_that_is_left_are_differences(
    pair: tuple[Path, Path],
):
    (pair[0] / "quarantine-00000.jsonl").unlink()
    (pair[0] / "checkpoints" / ".latest.1.tmp").touch()
    (pair[0] / ".metrics.jsonl.1.2.tmp").touch()
    assert "quarantine: [] instead of" in differences(pair)
    left = "left behind: ['.metrics.jsonl.1.2.tmp', 'checkpoints/.latest.1.tmp']"
    assert left in differences(pair)


def test_what_cannot_be_read_is_a_difference_beside_the_others(pair: tuple[Path, Path]):
    out = pair[0]
    (out / "quarantine-00000.jsonl").unlink()
    file = out / "checkpoints" / storage.step_name(2) / "encoder-00000-of-00001.safetensors"
    file.write_bytes(b"Weights")
    assert f"{file.name} is damaged: other bytes" in differences(pair)
    with open(out / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 3, "lo')
    assert "cannot be read: JSONDecodeError" in differences(pair)
    shutil.rmtree(out / "checkpoints")
    assert "no checkpoint here" in differences(pair)
    (out / "metrics.jsonl").unlink()
    assert "cannot be read: FileNotFoundError" in differences(pair)
    assert "quarantine: [] instead of" in differences(pair)


@pytest.mark.parametrize(
    ("statuses", "complaints", "outcome"),
    [
        ([1, 0], [], "exact resume"),
        ([0], [], "exact resume"),
        ([-9, 2, 0], [], "named stop"),
        ([1, None], [], "hang"),
        ([None], ["does not say why"], "hang"),
        ([1, 0], ["does not say why"], "wrong"),
        ([1, 1], [], "wrong"),
        ([], [], "wrong"),
    ],
)
def test_outcomes(statuses: list[int | None], complaints: list[str], outcome: str):
    assert judge.verdict(judge.Evidence(statuses, complaints)) == outcome


def test_a_stop_has_to_name_the_rank_at_fault_not_another_one():
    said = "error: rank 1 on host: killed by signal 9 (SIGKILL)"
    pattern = r"rank {rank} on \S+: killed by signal 9"
    assert judge.unsaid([pattern], {"rank": 1}, said) == []
    assert judge.unsaid([pattern], {"rank": 0}, said)
    assert judge.unsaid([pattern], {"rank": 1}, "error: the job ended with status 1")


def test_what_does_not_end_is_a_hang_and_nothing_of_it_stays(tmp_path: Path):
    child = (
        "import subprocess as s, sys; s.run([sys.executable, '-c', 'import time; time.sleep(99)'])"
    )
    job = jobs.Command([sys.executable, "-c", child], tmp_path / "output.txt")
    while not (below := jobs.descendants(job.pid)):
        assert job.poll() is None
    assert job.wait(0.05) is None
    job.end()
    assert job.poll() == -signal.SIGKILL
    assert [pid for pid in below if jobs.lives(pid)] == []


def test_every_kind_that_may_stop_must_say_why():
    """But for what is killed as a whole, launcher included."""
    assert [f.name for f in KINDS if not f.says and not set(f.statuses) <= SPEECHLESS] == []
    assert len(KINDS) >= 25
    assert len({f.name for f in KINDS}) == len(KINDS)


def test_words_of_a_stop_have_a_fact_of_the_case_in_them():
    stopping = [f for f in KINDS if f.refused or not set(f.statuses) <= SPEECHLESS]
    bare = {f.name for f in stopping if "{" not in "".join(f.says + f.refused)}
    assert bare == OF_NOBODY


def test_a_campaign_meets_every_kind_and_each_under_every_layout():
    plan = campaign.schedule(KINDS, 500)
    assert [number for *_, number in plan] == list(range(500))
    for kind in KINDS:
        layouts = {layout for one, layout, _ in plan if one is kind}
        sensible = shared.LAYOUTS.keys() - kind.not_under
        assert layouts <= sensible
        assert len(layouts) >= min(len(sensible), 2 + kind.turns), kind.name


def test_runs_of_another_campaign_are_not_taken_for_those_of_this_one():
    plan = campaign.schedule(KINDS, 3)
    rows = [{"run": n, "fault": one.name, "layout": at, "seed": 4} for one, at, n in plan]
    assert not campaign.of_another(rows, plan, 4)
    assert not campaign.of_another(rows, plan[:1], 4)
    assert campaign.of_another(rows, plan, 5)
    assert campaign.of_another(rows, campaign.schedule(KINDS[1:], 3), 4)


def test_a_filtered_connection_is_silent_until_the_filter_goes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs:
        network.attach(theirs, network.DROP)
        theirs.settimeout(0.3)
        ours.sendall(b"lost, then sent again")
        with pytest.raises(TimeoutError):
            theirs.recv(99)
        network.detach(theirs)
        theirs.settimeout(10)
        assert theirs.recv(99) == b"lost, then sent again"


def test_the_table_counts_outcomes_and_spreads_costs():
    row = {"fault": "rank killed", "met": "saving", "lost": 4, "recovered_s": 2.0, "repeats": 1}
    rows = [row | {"outcome": "exact resume"}, row | {"outcome": "wrong", "recovered_s": None}]
    lines = table.table(rows).splitlines()
    assert lines[2] == (
        "| rank killed | 2 | 1 |  | 1 |  | 2 | 2 saving | 4.0 (most 4) | 2.0 (most 2.0) |"
    )
    assert lines[-1].startswith("| **1 kinds** | 2 |")
    assert table.failed(rows) == rows[1:]
