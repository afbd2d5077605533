"""ovtrain cluster: which job is started with which words."""

from pathlib import Path

import pytest

from launch import cli


@pytest.fixture
def jobs(monkeypatch):
    """Every job started, as [module, word, ...]; each ends with status 7."""
    started: list[list[str]] = []
    monkeypatch.setattr(
        "launch.commands.cluster.run_job",
        lambda module, words: started.append([module, *words]) or 7,
    )
    return started


CALL = ["shards", "--out", "labels", "--centroids", "c", "clusters=4"]


@pytest.mark.parametrize("words", [CALL, ["run", *CALL], ["--centroids", "c", *CALL[:3], CALL[-1]]])
def test_running_is_what_cluster_does_by_default(jobs, words):
    assert cli.run(["cluster", *words]) == 7
    assert jobs == [["clustering.run", *CALL]]


def test_stage_and_task_are_passed_on(jobs):
    assert cli.run(["cluster", *CALL[:3], "--stage", "features", "--task", "2/8"]) == 7
    assert jobs == [["clustering.run", *CALL[:3], "--stage", "features", "--task", "2/8"]]


@pytest.mark.parametrize("words", [["--task", "2/8"], ["--stage", "labels", "--task", "2/8"]])
def test_tasks_are_of_the_feature_pass(jobs, words, capsys):
    assert cli.run(["cluster", *CALL[:3], *words]) == 2
    assert "--task needs --stage features" in capsys.readouterr().err
    assert not jobs


def test_several_processes_are_started_by_torchrun(jobs, monkeypatch):
    calls: list[tuple[list[str], Path, int]] = []

    def run_ranks(command: list[str], out: Path, nproc: int, *, to_stderr: bool) -> int:
        calls.append((command, out, nproc))
        return 0

    monkeypatch.setattr("launch.local.run_ranks", run_ranks)
    assert cli.run(["cluster", *CALL, "--nproc", "4"]) == 0
    ((command, out, nproc),) = calls
    assert (out, nproc, jobs) == (Path("labels"), 4, [])
    assert "torch.distributed.run" in command
    assert command[-len(CALL) - 1 :] == ["clustering.run", *CALL]


def test_a_report_compares_with_others(jobs):
    words = ["a", "b", "c", "--classes", "f", "--centers", "0", "--center", "7"]
    assert cli.run(["cluster", "report", *words]) == 7
    assert jobs == [["clustering.report", *words]]


@pytest.mark.parametrize("name", ["run", "report", "plan"])
def test_every_subcommand_has_help(name, capsys):
    assert cli.run(["cluster", name, "--help"]) == 0
    assert f"Usage: ovtrain cluster {name}" in capsys.readouterr().out
