"""Training under a real SLURM: whatever ends a job early, it comes back and ends where it would
have ended anyway, to the bit."""

import json
import re
import time

import pytest

from tests.helpers.training import computed
from tests.slurm.run import SlurmRun

pytestmark = pytest.mark.full


@pytest.fixture
def start(on_lab, capsys, setup_folder, tmp_path):
    def make(name: str, **run: object) -> SlurmRun:
        return SlurmRun(on_lab, capsys, setup_folder, tmp_path / name, **run)

    return make


@pytest.fixture(scope="session")
def undisturbed():
    """Weights and metrics of an uninterrupted run, made by the first test that asks."""
    return {}


def same_as_undisturbed(undisturbed, start, run: SlurmRun) -> None:
    if not undisturbed:
        alone = start("undisturbed")
        alone.submit(check=True)
        (attempt,) = alone.finish()
        health = json.loads((alone.out / "logs" / "health.json").read_text())
        assert health["bad_nodes"] == []
        assert attempt["kind"] == "finished"
        assert attempt["nodes"] == ["n1", "n2"]
        undisturbed |= {"weights": alone.weights(), "rows": computed(alone.out)}
        assert len(undisturbed["weights"]) > 4
    assert run.weights() == undisturbed["weights"]
    rows = [row for row in computed(run.out) if "event" not in row]
    assert rows == [row for row in undisturbed["rows"] if "event" not in row]


def test_a_preempted_job_saves_comes_back_and_ends_with_the_same_weights(start, undisturbed):
    run = start("preempted")
    job = run.submit()
    run.wait_for("step 25/60")
    urgent = run.lab.submit(
        *("-p", "urgent", "--nodes=3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    )
    run.wait_for("ended with status 75 (RUNNING); next: requeue", 30)
    assert run.lab.wait_end(urgent, 60) == "COMPLETED"
    first, second = run.finish()
    assert (first["kind"], second["kind"]) == ("saved", "finished")
    assert 20 < first["step"] < 60
    assert f"resumed from {run.out}/checkpoints/step-{first['step']:08d}" in run.log
    assert run.lab.job(job)["Restarts"] == "1"
    same_as_undisturbed(undisturbed, start, run)


def test_a_killed_rank_ends_the_job_is_named_and_trained_on_from_the_last_checkpoint(
    start, undisturbed
):
    run = start("killed")
    run.submit()
    run.wait_for("step-00000020 in")
    run.kill(3)
    assert run.wait_for("next: requeue", 15) < 15
    told = re.findall(r"^error: .*", run.log, re.MULTILINE)
    assert told == ["error: rank 3 on n2: killed by signal 9 (SIGKILL)"]
    assert "Traceback" not in run.log
    first, second = run.finish()
    assert (first["kind"], first["rank"], first["node"], first["step"]) == ("failed", 3, "n2", 20)
    assert second["kind"] == "finished"
    assert "step-00000020" in re.findall(r"resumed from .*", run.log)[0]
    same_as_undisturbed(undisturbed, start, run)


def test_a_node_on_which_ranks_fail_twice_is_left_out(start):
    run = start("unlucky", checkpoint_every=10)
    run.submit(task_per="gpu")
    for times in (1, 2):
        run.wait_for("saved ", times=2 * times)  # newer checkpoints than those of the last start
        run.kill(2)
        run.wait_for("next: requeue", 15, times=times)
    attempts = run.finish()
    assert [attempt["kind"] for attempt in attempts] == ["failed", "failed", "finished"]
    assert attempts[1]["excluded"] == ["n2"]
    assert attempts[2]["nodes"] == ["n1", "n3"]
    assert run.lab.job(run.job)["ExcNodeList"] == "n2"


VERDICT = """
import json, os, sys
if "ovtrain.check" in sys.orig_argv:
    nodes = os.environ["OVTRAIN_NODES"].split()
    report = sys.orig_argv[sys.orig_argv.index("--out") + 1]
    if os.environ["RANK"] == "0":
        bad = [node for node in nodes if node == "n2"]
        json.dump({"bad_nodes": bad, "problems": ["n2 is slow"] * len(bad)}, open(report, "w"))
    os._exit(76 if "n2" in nodes else 0)
"""


def test_a_node_that_the_check_finds_bad_is_left_out(start, tmp_path):
    """The verdict is made up; what becomes of it is not."""
    (tmp_path / "sitecustomize.py").write_text(VERDICT)
    run = start("unhealthy", steps=2)
    run.submit(check=True, task_per="gpu", env={"PYTHONPATH": str(tmp_path)})
    first, second = run.finish()
    assert (first["kind"], first["why"], first["excluded"]) == ("unhealthy", "n2 is slow", ["n2"])
    assert (second["kind"], second["nodes"]) == ("finished", ["n1", "n3"])


def test_a_job_on_a_draining_node_trains_on_and_comes_back_on_others(start, undisturbed):
    run = start("drained")
    job = run.submit()
    run.wait_for("step 10/60")
    run.lab.call("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=maintenance")
    try:
        run.wait_for("step 20/60")  # those that run on it go on
        run.lab.call("scancel", "--signal=USR1", job)
        first, second = run.finish()
    finally:
        run.lab.call("scontrol", "update", "NodeName=n2", "State=RESUME")
    assert (first["kind"], first["nodes"]) == ("saved", ["n1", "n2"])
    assert (second["kind"], second["nodes"]) == ("finished", ["n1", "n3"])
    same_as_undisturbed(undisturbed, start, run)


def test_a_job_is_warned_before_its_limit_and_comes_back(start):
    run = start("limited", steps=20_000, checkpoint_every=100_000, log_every=100)
    job = run.submit(time="00:02:00", warn_s=30)
    run.wait_for("next: requeue", 120)
    run.lab.wait_for(lambda: run.lab.job(job)["Restarts"] == "1", 30, "the job to come back")
    run.lab.call("scancel", job)
    run.lab.wait_end(job, 60)
    assert re.search(r"saved .*/checkpoints/step-", run.log)
    assert "DUE TO TIME LIMIT" not in run.log


def test_a_cancelled_job_does_not_come_back(start):
    run = start("cancelled", steps=400)
    job = run.submit()
    run.wait_for("step 10/400")
    run.lab.call("scancel", job)
    assert run.lab.wait_end(job, 40) == "CANCELLED"
    time.sleep(2)
    assert run.lab.state(job) == "CANCELLED"


def test_an_error_of_the_input_ends_a_job_that_was_submitted_by_hand(start):
    run = start("wrong", steps=2)
    run.submit()
    run.finish()
    run.config.write_text(run.config.read_text().replace("steps: 2", "steps: 3"))
    job = run.submit_by_hand()
    assert run.lab.wait_end(job, 60) == "FAILED"
    assert "this run directory belongs to another config: run.steps=3 (was 2)" in run.log
    assert "next: end 2" in run.log
    assert run.lab.job(job)["ExitCode"] == "2:0"
