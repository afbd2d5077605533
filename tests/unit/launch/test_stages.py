"""Stages: unchanged ones are skipped, changed ones run again, failures name their error and log."""

import json
import sys
from pathlib import Path

import pytest

from launch.display import PlainDisplay
from launch.stages import Stage, StageFailed, StageRunner
from ovtrain.schema.errors import OvtrainError


@pytest.fixture
def runner(tmp_path) -> StageRunner:
    return StageRunner(tmp_path, PlainDisplay())


def job(tmp_path: Path, code: str, **fields) -> Stage:
    """A job that notes each of its runs in ``ran``."""
    note = f"open({str(tmp_path / 'ran')!r}, 'a').write('x')"
    return Stage("job", [sys.executable, "-c", f"{note}\n{code}"], **fields)


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "ran").read_text())


def statuses(tmp_path: Path) -> list[str]:
    return [row["status"] for row in json.loads((tmp_path / "stages.json").read_text())]


def test_an_unchanged_stage_is_not_run_again(runner, tmp_path):
    made = tmp_path / "made"
    stage = job(tmp_path, f"open({str(made)!r}, 'w')", outputs=[made])
    runner.run(stage)
    runner.run(stage)
    assert runs(tmp_path) == 1
    assert statuses(tmp_path) == ["ran", "skipped"]
    assert runner.records[0].seconds == runner.records[1].seconds


def test_a_changed_input_a_lost_output_or_other_state_runs_it_again(runner, tmp_path):
    made, read = tmp_path / "made", tmp_path / "read"
    read.write_text("1")
    code = f"open({str(made)!r}, 'w')"
    stage = job(tmp_path, code, inputs=[read], outputs=[made])
    runner.run(stage)
    read.write_text("2")
    runner.run(stage)
    made.unlink()
    runner.run(stage)
    runner.run(job(tmp_path, code, inputs=[read], outputs=[made], state="other files"))
    assert runs(tmp_path) == 4


def test_a_failure_names_error_log_and_status(capsys, runner, tmp_path):
    with pytest.raises(StageFailed, match="no video in it") as caught:
        runner.run(job(tmp_path, "print('error: no video in it'); raise SystemExit(2)"))
    assert caught.value.status == 2
    assert "logs/job.log" in str(caught.value)
    assert "no video in it" in (tmp_path / "logs/job.log").read_text()
    assert statuses(tmp_path) == ["failed"]
    assert "failed in" in capsys.readouterr().out


def test_a_failed_stage_runs_again(runner, tmp_path):
    stage = job(tmp_path, "raise SystemExit(3)")
    for _ in range(2):
        with pytest.raises(StageFailed):
            runner.run(stage)
    assert runs(tmp_path) == 2


def test_success_without_the_output_is_a_failure(runner, tmp_path):
    with pytest.raises(StageFailed, match="left no"):
        runner.run(job(tmp_path, "", outputs=[tmp_path / "never"]))


def test_an_absent_input_is_a_typed_error(runner, tmp_path):
    with pytest.raises(OvtrainError, match="is missing"):
        runner.run(job(tmp_path, "", inputs=[tmp_path / "never"]))


def test_a_run_folder_is_kept_for_resuming_and_emptied_for_another_config(runner, tmp_path):
    run, config = tmp_path / "run", tmp_path / "config"
    config.write_text("1")
    (run / "checkpoints").mkdir(parents=True)
    stage = job(tmp_path, "raise SystemExit(1)", inputs=[config], resumes=run)
    with pytest.raises(StageFailed):
        runner.run(stage)
    with pytest.raises(StageFailed):
        runner.run(stage)
    assert (run / "checkpoints").is_dir()
    config.write_text("2")
    with pytest.raises(StageFailed):
        runner.run(stage)
    assert not run.exists()


def test_a_last_line_is_shown_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("launch.display.time.monotonic", lambda: now[0])
    display = PlainDisplay()
    display.start("train")
    display.line("step 1")
    now[0] = 20.0
    display.line("step 2")
    display.line("step 3")
    display.end("train", "ran", 20.0)
    shown = capsys.readouterr().out
    assert "step 2" in shown
    assert "step 1" not in shown
    assert "step 3" not in shown
    assert "done in 20.0 s" in shown
