"""The demo's order, its idempotence, small folders and failures, with stand-ins for the jobs."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from launch import cli
from launch.demo import listing
from launch.demo_fit import fit_clusters, fit_ranks
from ovtrain.config.cluster import ClusterConfig
from ovtrain.config.data import DataConfig, SourceConfig
from ovtrain.config.train import TrainConfig

FAKE = [sys.executable, "-m", "tests.unit.launch.fake_jobs"]


@pytest.fixture
def out(tmp_path, monkeypatch) -> Path:
    """Every job is the stand-in; its calls land in ``calls.jsonl``."""
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls.jsonl"))
    monkeypatch.setattr(
        "launch.demo.module_command", lambda module, *words: [*FAKE, module, *words]
    )
    monkeypatch.setattr(
        "launch.demo.train_command", lambda config, nproc: [*FAKE, "ovtrain.train", str(config)]
    )
    return tmp_path / "demo"


def calls(out: Path) -> list[str]:
    path = out.parent / "calls.jsonl"
    return [json.loads(line)[0] for line in path.read_text().splitlines()] if path.is_file() else []


def words_of(out: Path, module: str) -> list[list[str]]:
    rows = [json.loads(line) for line in (out.parent / "calls.jsonl").read_text().splitlines()]
    return [words for name, *words in rows if name == module]


def demo(out: Path, *words: str) -> int:
    small = ["train_clips=40", "heldout_clips=4"]
    seeds = [] if "--videos" in words else ["seeds=1"]
    return cli.run(["demo", "--out", str(out), *small, *seeds, *words])


def test_all_stages_run_once_and_a_second_call_runs_none(out, capsys):
    assert demo(out) == 0
    assert Counter(calls(out)) == {
        "data_pipelines.synthetic": 1,
        "data_pipelines.prepare": 2,
        "clustering.run": 3,
        "clustering.report": 2,
        "clustering.shuffle": 2,
        "ovtrain.train": 3,
        "ovtrain.eval.probe": 1,
    }
    assert all("--classes" in words for words in words_of(out, "clustering.report"))
    shown = capsys.readouterr().out
    assert "0.500" in shown
    assert "broken.mp4: unreadable" in shown
    assert (out / "report.html").is_file()
    assert demo(out) == 0
    assert len(calls(out)) == 14
    rows = json.loads((out / "stages.json").read_text())
    assert {row["status"] for row in rows} == {"skipped"}
    # Another training recipe changes nothing before training.
    assert demo(out, "stage2_set=[run.steps=7]") == 0
    assert Counter(calls(out)[14:]) == {"ovtrain.train": 2, "ovtrain.eval.probe": 1}


def test_another_stage_one_trains_everything_after_it_again(out):
    assert demo(out) == 0
    before = len(calls(out))
    assert demo(out, "stage1_set=[run.steps=5]") == 0
    assert Counter(calls(out)[before:]) == {"ovtrain.train": 3, "ovtrain.eval.probe": 1}


@pytest.mark.parametrize(
    ("version", "first"),
    [("GENERATOR", "data_pipelines.synthetic"), ("PIPELINE", "data_pipelines.prepare")],
)
def test_data_of_an_older_version_are_made_again(out, monkeypatch, version: str, first: str):
    assert demo(out) == 0
    before = len(calls(out))
    monkeypatch.setattr(f"launch.demo.{version}", -1)
    assert demo(out) == 0
    assert calls(out)[before] == first


def test_a_probe_switched_off_keeps_the_table_it_made_before(out, capsys):
    assert demo(out) == 0
    table = (out / "probe/result.json").read_text()
    assert demo(out, "probe=false") == 0
    assert (out / "probe/result.json").read_text() == table
    assert demo(out) == 0
    assert Counter(calls(out))["ovtrain.eval.probe"] == 1
    assert demo(out, "probe=false", "stage2_set=[run.steps=7]") == 0  # of other runs
    assert "skipped" in json.loads((out / "probe/result.json").read_text())
    assert "Probe skipped: probe=false" in " ".join(capsys.readouterr().out.split())
    assert demo(out, "stage2_set=[run.steps=7]") == 0
    assert Counter(calls(out))["ovtrain.eval.probe"] == 2


def test_a_typo_in_a_later_stages_overrides_is_found_before_the_first_stage(out, capsys):
    for key in ("stage1_set", "stage2_set", "probe_set"):
        assert demo(out, f"{key}=[no.such=1]") == 2
        assert "unknown key" in capsys.readouterr().err
    assert calls(out) == []


def test_a_folder_holds_one_demo(out, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert demo(out) == 0
    before = len(calls(out))
    assert demo(out, "--videos", str(tmp_path / "mine")) == 2
    assert "holds a demo of generated clips; choose another --out" in capsys.readouterr().err
    assert len(calls(out)) == before


def test_an_error_between_the_stages_still_leaves_a_report(out, capsys):
    assert demo(out, "stage2_set=[run.global_batch=1]") == 2
    assert "run.global_batch=1" in capsys.readouterr().err
    assert (out / "report.html").is_file()


def test_a_folder_that_another_process_works_in_is_refused(out, capsys):
    code = "import sys, time; from pathlib import Path; from ovtrain.schema.lock import take\n"
    code += "take(Path(sys.argv[1]), 'x'); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert demo(out) == 2
        assert f"(process {other.pid} on " in capsys.readouterr().err
        other.kill()
    assert calls(out) == []


def test_names_that_are_not_utf_8_are_refused(out, capsys):
    for words in (["--videos", "w\udcff"], ["--out", "o\udcff"]):
        assert cli.run(["demo", *words]) == 2
        assert "is not UTF-8; rename it" in capsys.readouterr().err


def test_the_demos_own_files_are_not_among_the_videos(tmp_path):
    (tmp_path / "v/runs/o/logs").mkdir(parents=True)
    (tmp_path / "v/a.mp4").write_text("x")
    (tmp_path / "v/runs/o/logs/l.txt").write_text("x")
    assert len(listing(tmp_path / "v", exclude=tmp_path / "v/runs/o").splitlines()) == 1
    assert len(listing(tmp_path / "v/runs/o/logs", exclude=tmp_path / "v/runs/o").splitlines()) == 1


def test_other_held_out_labels_are_probed_again(out):
    assert demo(out) == 0
    path = out / "labels/heldout-video/labels/ids.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    assert demo(out) == 0
    assert Counter(calls(out))["ovtrain.eval.probe"] == 2


def test_own_videos_are_not_probed_and_small_folders_are_fitted(out, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_CLIPS", "9")
    (tmp_path / "mine").mkdir()
    assert demo(out, "--videos", str(tmp_path / "mine")) == 0
    assert "ovtrain.eval.probe" not in calls(out)
    assert "data_pipelines.synthetic" not in calls(out)
    assert Counter(calls(out))["ovtrain.train"] == 2
    assert "clustering.shuffle" not in calls(out)
    assert not any("--classes" in words for words in words_of(out, "clustering.report"))
    assert "no classes" in json.loads((out / "probe/result.json").read_text())["skipped"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "9 video samples carry 2 clusters" in shown
    assert "Global batch 18 instead of " in shown
    assert "Probe skipped" in (out / "report.html").read_text()


def test_a_failing_job_ends_the_demo_with_its_error(out, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "clustering.run")
    assert demo(out) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: stage cluster-train-video: FAKE: nothing to work on")
    assert "cluster-train-video.log" in shown
    assert "Traceback" not in shown
    assert calls(out)[-1] == "clustering.run"
    assert "failed" in (out / "report.html").read_text()


@pytest.mark.parametrize(("samples", "clusters", "top"), [(1000, 64, 5), (60, 10, 5), (9, 2, 1)])
def test_clusters_fit_the_samples(samples: int, clusters: int, top: int):
    asked = ClusterConfig(clusters=64, top=5)
    fitted, note = fit_clusters(asked, samples, "video")
    assert (fitted.clusters, fitted.top) == (clusters, top)
    assert bool(note) == (clusters != 64)
    assert fitted.problems() == []


def test_a_source_of_few_classes_takes_few_processes():
    one, many = (SourceConfig(n, n, f"{n}-labels", classes=c) for n, c in (("a", 1), ("b", 40)))
    config = TrainConfig(data=DataConfig([many, one]))
    assert fit_ranks(config, 2) == (1, "1 processes instead of 2: source a has 1 classes.")
    assert fit_ranks(config, 1) == (1, "")
    assert fit_ranks(TrainConfig(data=DataConfig([many])), 4) == (4, "")
