"""Whether a job starts once more, and what is kept of each of its starts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch import attempts
from launch.attempts import JobNow, begin, decide, end, read_attempts
from launch.failures import Failure, failures, record_failure
from ovtrain.schema.atomic import write_json

JOB = {"SLURM_JOB_ID": "7", "OVTRAIN_NODES": "n1 n2 ", "SLURM_RESTART_COUNT": "2"}
RUNNING = JobNow("RUNNING", 60, 3600)
SHOWN = """JobId=7 JobName=x
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   JobState={} Reason=None Dependency=(null)
   RunTime={} TimeLimit={} TimeMin=N/A
"""


def rows(*kinds: str, steps: list[int] | None = None) -> list[dict[str, object]]:
    at = steps or [5] * len(kinds)
    return [{"kind": k, "step": s, "node": ""} for k, s in zip(kinds, at, strict=True)]


@pytest.mark.parametrize(
    ("history", "said"),
    [
        (rows("finished"), "end 0"),
        (rows("saved"), "requeue"),
        (rows("stopped"), "requeue"),
        (rows(*["stopped"] * 20), "requeue"),
        (rows(*["saved"] * 21), "end 1"),
        (rows(*["saved"] * 21, steps=[*[5] * 20, 6]), "requeue"),
        (rows("input_error"), "end 2"),
        (rows("failed"), "requeue"),
        (rows("failed", "unhealthy"), "requeue"),
        (rows("failed", "failed", "failed"), "end 1"),
        (rows("failed", "saved", "failed", "failed"), "requeue"),
        (rows("failed", "failed", "failed", steps=[5, 5, 10]), "requeue"),
        (rows("failed", "failed", "failed", "failed", steps=[5, 10, 10, 10]), "end 1"),
    ],
)
def test_failures_without_progress_are_bounded_and_stops_are_not(history, said):
    assert str(decide(history, restarts=2)) == said


def test_a_job_that_slurm_is_ending_stays_away():
    assert str(decide(rows("saved"), 3, decided=True)) == "end 75"
    assert str(decide(rows("failed"), 3, decided=True)) == "end 1"
    assert str(decide(rows("finished"), 3, decided=True)) == "end 0"


@pytest.mark.parametrize(
    ("state", "ran", "limit", "decided"),
    [
        ("RUNNING", "00:01:00", "01:00:00", False),
        ("COMPLETING", "00:01:00", "01:00:00", True),
        ("COMPLETING", "23:00:00", "1-00:00:00", True),
        ("COMPLETING", "1-00:00:02", "1-00:00:00", False),
        ("COMPLETING", "9-00:00:00", "UNLIMITED", True),
        ("CANCELLED", "00:01:00", "01:00:00", True),
        ("TIMEOUT", "01:00:00", "01:00:00", False),
    ],
)
def test_a_job_that_slurm_is_ending_is_not_requeued_unless_its_time_is_up(
    state, ran, limit, decided
):
    assert JobNow.of(SHOWN.format(state, ran, limit)).decided is decided


@pytest.mark.parametrize(
    ("preempted", "decided"),
    [("None", True), ("2026-11-21T23:59:59", True), ("2026-11-22T00:05:00", False)],
)
def test_a_preempted_start_is_requeued_where_slurm_would_not(preempted: str, decided: bool):
    """Its partition may cancel what it preempts. An earlier start's preemption does not count."""
    shown = SHOWN.format("COMPLETING", "00:05:00", "01:00:00")
    shown += f"   StartTime=2026-11-22T00:00:00 EndTime=x PreemptTime={preempted}\n"
    assert JobNow.of(shown).decided is decided


def test_a_job_of_which_slurm_says_nothing_goes_on():
    assert not JobNow.of("").decided


def started(out: Path) -> Path:
    (out / "logs").mkdir(parents=True)
    begin(out, JOB)
    return out


def test_the_first_failure_is_told_not_what_came_of_it(tmp_path, capsys):
    out = started(tmp_path)
    lost = "RuntimeError: [pair.cc:553] Connection closed by peer [10.0.0.2]:5544."
    late = Failure.of_rank(0, "n1", 1, ["Traceback (most recent call last)", lost])
    root = Failure.of_rank(5, "n2", 1, ["x", "Traceback (most recent call last)", "KeyError: 'a'"])
    record_failure(out, "7.2", late)
    record_failure(out, "7.2", root)
    record_failure(out, "7.1", Failure.of_rank(1, "n1", -9, []))  # an earlier start's
    assert [failure.rank for failure in failures(out, "7.2")] == [5, 0]
    assert str(end(out, 1, RUNNING, 3, JOB)) == "requeue"
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "error: rank 5 on n2: KeyError: 'a'"
    assert told[1:3] == ["  | Traceback (most recent call last)", "  | KeyError: 'a'"]
    (row,) = read_attempts(out)
    assert (row["kind"], row["rank"], row["node"], row["nodes"]) == (
        "failed",
        5,
        "n2",
        ["n1", "n2"],
    )
    assert not list((out / "logs").glob("attempt-*"))


@pytest.mark.parametrize(
    ("status", "lines", "kind", "why"),
    [
        (-9, [], "failed", "killed by signal 9 (SIGKILL)"),
        (-11, ["x"], "failed", "killed by signal 11 (SIGSEGV)"),
        (75, [], "failed", "a step hung; where its threads stood is in logs/stacks-00004.txt"),
        (2, ["error: run.steps=0: wrong"], "input_error", "run.steps=0: wrong"),
        (3, ["bye"], "failed", "ended with status 3"),
        (1, ["  deep in it", "KeyError: 'a'"], "failed", "KeyError: 'a'"),
        (-40, [], "failed", "killed by signal 40 (Real-time signal 6)"),
    ],
)
def test_why_a_rank_ended(status, lines, kind, why):
    failure = Failure.of_rank(4, "n1", status, lines)
    assert (failure.kind, failure.why) == (kind, why)


@pytest.mark.parametrize(
    ("line", "aftermath"),
    [
        ("RuntimeError: Read error [10.0.0.1]:25491: Connection reset by peer.", True),
        ("torch.distributed.DistBackendError: NCCL communicator was aborted on rank 3.", True),
        ("torch.distributed.DistStoreError: wait timeout after 600000ms", True),
        ("FileNotFoundError: no such file: 'peer_data.py'", False),
        ("torch.OutOfMemoryError: CUDA out of memory.", False),
    ],
)
def test_a_rank_that_only_lost_another_one_is_not_the_cause(line, aftermath):
    assert Failure.of_rank(0, "n1", 1, ["Traceback (most recent call last):", line]).aftermath is (
        aftermath
    )


def test_nodes_that_failed_twice_or_are_unhealthy_are_left_out(tmp_path):
    out = tmp_path
    for number, node in enumerate(["n2", "n1", "n2"]):
        begin(out, JOB)
        (out / "checkpoints").mkdir(exist_ok=True)
        (out / "checkpoints/latest").write_text(f"step-{number + 1:08d}\n")
        for path in (out / "logs").glob("failures/*"):
            path.unlink()
        record_failure(out, "7.2", Failure.of_rank(3, node, -9, []))
        decision = end(out, 1, RUNNING, 3, JOB)
    assert str(decision) == "requeue n2"
    for path in (out / "logs").glob("failures/*"):
        path.unlink()
    begin(out, JOB)
    write_json(out / "logs/health.json", {"bad_nodes": ["n5"], "problems": ["rank 4: slow"]})
    assert str(end(out, 76, RUNNING, 3, JOB)) == "requeue n2 n5"
    assert read_attempts(out)[-1]["why"] == "rank 4: slow"
    begin(out, JOB)
    assert str(end(out, 76, RUNNING, 3, JOB)) == "requeue n2 n5"  # a check that left no report
    assert read_attempts(out)[-1]["why"] == "the check before training found bad nodes"
    assert [row["excluded"] for row in read_attempts(out)] == [
        *([], [], ["n2"], ["n2", "n5"], ["n2", "n5"]),
    ]


def test_a_start_that_left_no_row_gets_one(tmp_path):
    started(tmp_path)
    begin(tmp_path, JOB | {"SLURM_RESTART_COUNT": "3"})
    (row,) = read_attempts(tmp_path)
    assert row["kind"] == "lost"
    assert "without a word" in row["why"]
    assert json.loads((tmp_path / "logs/attempt-7.json").read_text())["attempt"] == 1


def test_losses_are_bounded_and_cost_no_restarts(tmp_path):
    started(tmp_path)
    for _ in range(attempts.STOPS):
        assert begin(tmp_path, JOB) is None
    assert str(end(tmp_path, 1, RUNNING, 1, JOB)) == "requeue"
    for _ in range(attempts.STOPS + 1):
        assert begin(tmp_path, JOB) is None
    assert str(begin(tmp_path, JOB)) == "end 1"


def test_another_jobs_starts_say_nothing_of_this_one(tmp_path):
    out = started(tmp_path)
    for _ in range(3):
        record_failure(out, "7.2", Failure.of_rank(3, "n2", -9, []))
        begin(out, JOB)
        end(out, 1, RUNNING, 2, JOB)
    other = JOB | {"SLURM_JOB_ID": "8"}
    begin(out, other)
    begin(out, JOB)  # while the other one runs
    record_failure(out, "8.2", Failure.of_rank(3, "n2", -9, []))
    assert str(end(out, 1, RUNNING, 2, other)) == "requeue"


def test_an_end_without_its_beginning_decides_all_the_same(tmp_path):
    (tmp_path / "logs").mkdir()
    assert str(end(tmp_path, 75, RUNNING, 3, JOB)) == "requeue"
    assert read_attempts(tmp_path)[0]["job"] == "7"


def test_a_verdict_outweighs_ranks_that_were_ended_with_it(tmp_path):
    out = started(tmp_path)
    write_json(out / "logs/health.json", {"bad_nodes": ["n5"], "problems": ["slow"]})
    stopped = replace(Failure.of_rank(3, "n2", -15, []), kind="stopped")
    record_failure(out, "7.2", stopped)
    assert str(end(out, 76, RUNNING, 3, JOB)) == "requeue n5"


def test_a_signal_before_ranks_start_is_a_stop(tmp_path):
    out = started(tmp_path)
    assert str(end(out, 138, RUNNING, 0, JOB)) == "requeue"
    assert read_attempts(out)[0]["kind"] == "stopped"


def test_a_torn_row_is_left_out(tmp_path):
    out = started(tmp_path)
    end(out, 75, RUNNING, 3, JOB)
    with open(out / "logs/attempts.jsonl", "a") as handle:
        handle.write('{"attempt": 1, "ki')
    assert [row["kind"] for row in attempts.read_attempts(out)] == ["saved"]
    begin(out, JOB)
    end(out, 0, RUNNING, 3, JOB)
    assert [row["kind"] for row in attempts.read_attempts(out)] == ["saved", "finished"]


def test_the_command_says_what_to_do(tmp_path, capsys):
    config = tmp_path / "launch.yaml"
    config.write_text(f"run: {{out: {tmp_path / 'run'}, steps: 1}}\n")
    assert attempts.main(["begin", str(config)]) == 0
    assert attempts.main(["end", str(config), "--status", "75", "--job", "JobState=CANCELLED"]) == 0
    told = capsys.readouterr()
    assert told.out == "end 75\n"
    assert "not started again: SLURM was ending the job, by scancel" in told.err
