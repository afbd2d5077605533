"""A pipeline file becomes sbatch calls in the order in which they wait for one another."""

import math
import shlex
from pathlib import Path

import pytest
import yaml

from launch import cli, sbatch
from ovtrain.config.load import load
from ovtrain.config.pipeline import PipelineConfig
from ovtrain.config.site import limit_s

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


def test_dollars_of_a_site_are_the_shells(chain, tmp_path, monkeypatch):
    fake_sbatch(tmp_path, monkeypatch)
    lines = "export CACHE=${HOME}/cache\nsource ${VENV:-.venv}/bin/activate\n"
    site = {"setup": lines, "env": {"EMPTY": "", "ROOT": "${X}"}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    assert cli.run(["launch", "slurm", str(chain), "--site", "site.yaml"]) == 0
    setup = (tmp_path / "out/train/logs/setup.sh").read_text()
    assert setup.endswith(lines)
    assert "export EMPTY=''\n" in setup
    assert "export ROOT='${X}'\n" in setup


def test_a_folder_with_a_comma_reaches_the_job_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["run.out=runs/lr=1,wd=2 %", "--dry-run"]
    assert cli.run(["launch", "slurm", "pretrain/debug-stage1", *words, "--site", "site/cpu"]) == 0
    call = shlex.split(capsys.readouterr().out)
    assert call[0] == "OVTRAIN_SETUP=runs/lr=1,wd=2 %/logs/setup.sh"
    assert "--export=ALL" in call
    assert "--output=runs/lr=1,wd=2 %%/logs/slurm-%j.out" in call


def test_jobs_of_two_sites_do_not_share_a_folder(chain, capsys):
    other = "out: ${root}/train\n    site: {env: {A: b}}"
    chain.write_text(chain.read_text().replace("out: ${root}/labels", other))
    assert cli.run(["launch", "slurm", str(chain)]) == 2
    assert "other sites, one folder out/train" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_submitted(chain, capsys):
    chain.write_text(chain.read_text().replace('out: "${root}/data"', "out: /proc/sys/x"))
    assert cli.run(["launch", "slurm", str(chain)]) == 2
    assert "job data/inventory=/proc/sys/x: nothing can be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 5400), ("1:30", 90), ("24:00:00", 86_400), ("2-12", 216_000)),
        *(("1-2:03:04", 93_784), ("", math.inf), ("UNLIMITED", math.inf), ("1:2:3:4", None)),
    ],
)
def test_time_limits_as_sbatch_reads_them(text, seconds):
    assert limit_s(text) == seconds


def test_a_warning_that_leaves_no_time_to_train_is_refused(capsys):
    words = ["launch", "slurm", "pretrain/debug-stage1", "--time", "00:05:00", "--dry-run"]
    assert cli.run(words) == 2
    assert "warn_s=300 of time=00:05:00" in capsys.readouterr().err
