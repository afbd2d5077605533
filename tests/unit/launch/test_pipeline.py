"""A pipeline file becomes sbatch calls in the order in which they wait for one another."""

import shlex
from pathlib import Path

import pytest

from launch import cli, sbatch
from ovtrain.config.load import load
from ovtrain.config.pipeline import PipelineConfig

CHAIN = """
root: {root}
jobs:
  train:
    run: train
    config: pretrain/debug-stage1
    set: ["run.out=${{root}}/train"]
    after: [labels]
  labels:
    run: cluster
    source: ${{root}}/data/video
    out: ${{root}}/labels
    tasks: 3
    after: [data]
  data: {{run: prepare, source: media, out: "${{root}}/data", tasks: 4}}
"""


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "media").mkdir()
    path = tmp_path / "chain.yaml"
    path.write_text(CHAIN.format(root="out"))
    return path


def fake_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, refuse: str = "nothing") -> Path:
    """Commands that note how they are called; ids 1, 2, ... ``refuse``: a word of
    a refused call."""
    log = folder / "calls.txt"
    script = f"""#!/bin/bash
echo "$(basename "$0") $*" >> {log}
if [[ "$*" == *{refuse}* && $0 == *sbatch ]]; then
  echo "sbatch: error: no such partition" >&2
  exit 1
fi
grep -c ^sbatch {log}
"""
    for name in ("sbatch", "scancel"):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return log


def test_calls_come_behind_those_that_they_wait_for(chain, tmp_path, monkeypatch, capsys):
    log = fake_sbatch(tmp_path, monkeypatch)
    assert cli.run(["launch", "slurm", str(chain), "--site", "site/cpu"]) == 0
    calls = [shlex.split(line) for line in log.read_text().splitlines()]
    named = [next(w[11:] for w in call if w.startswith("--job-name=")) for call in calls]
    stages = ("inventory", "cuts", "plan", "samples", "select", "shards", "finish")
    assert named == [*(f"data-{stage}" for stage in stages), "labels-features", "labels", "train"]
    waits = [[w for w in call if w.startswith("--dependency=")] for call in calls]
    assert waits == [[], *([f"--dependency=afterok:{i}"] for i in range(1, 10))]
    arrays = [[w for w in call if w.startswith("--array=")] for call in calls]
    four, none = ["--array=0-3"], []
    assert arrays == [four, four, none, four, none, four, none, ["--array=0-2"], none, none]
    assert "job 10  train" in capsys.readouterr().out
    assert (tmp_path / "out/train/launch.yaml").is_file()
    assert "OVTRAIN_NPROC=2" in (tmp_path / "out/train/logs/setup.sh").read_text()


def test_a_refused_call_takes_those_before_it_back(chain, tmp_path, monkeypatch, capsys):
    log = fake_sbatch(tmp_path, monkeypatch, refuse="labels-features")
    assert cli.run(["launch", "slurm", str(chain)]) == 2
    assert log.read_text().splitlines()[-1] == "scancel 1 2 3 4 5 6 7"
    error = capsys.readouterr().err
    assert "job labels/features: sbatch: error: no such partition" in error
    assert "were cancelled" in error
    assert not (tmp_path / "out/jobs.json").exists()


def test_all_problems_of_all_jobs_are_told_at_once(chain, capsys):
    text = chain.read_text()
    text = text.replace("tasks: 3", "tasks: 3\n    set: [clusters=0]").replace(
        "run.out", "run.outt"
    )
    chain.write_text(text.replace("source: media", "source: nowhere"))
    assert cli.run(["launch", "slurm", str(chain)]) == 2
    error = capsys.readouterr().err
    assert "jobs.data: source nowhere: no such file or folder" in error
    assert "jobs.labels: clusters=0" in error
    assert "jobs.train" in error
    assert "unknown key 'run.outt'" in error


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("after: [data]", "after: [date]", "jobs.labels: after names date, no job here"),
        ("tasks: 4", "after: [train]", "jobs data, labels, train wait for one another"),
        ("run: cluster", "run: clutser", "run=clutser; allowed: prepare, cluster, train, probe"),
        ("source: media,", "", "jobs.data: source is empty; run=prepare needs it"),
        ("tasks: 4", "tasks: 0", "tasks=0; allowed: a positive number"),
        ("root: out", "root: ''", "root is empty"),
        ("tasks: 4", "taks: 4", "unknown key 'taks'; did you mean tasks?"),
        ("tasks: 4", "site: {nodez: 2}", "unknown key 'nodez'; did you mean nodes?"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key(chain, capsys, old, new, said):
    chain.write_text(chain.read_text().replace(old, new))
    assert cli.run(["launch", "slurm", str(chain), "--dry-run"]) == 2
    assert said in capsys.readouterr().err


def test_a_dry_run_writes_nothing(chain, tmp_path, capsys):
    assert cli.run(["launch", "slurm", str(chain), "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chain.yaml", "media"]


def test_jobs_that_wait_for_nothing_may_stand_anywhere(chain):
    assert load(PipelineConfig, chain).order() == ["data", "labels", "train"]


def test_without_sbatch_it_says_so(chain, monkeypatch, capsys):
    monkeypatch.setattr(sbatch.shutil, "which", lambda _: None)
    assert cli.run(["launch", "slurm", str(chain)]) == 2
    assert "SLURM login node" in capsys.readouterr().err
