"""ovtrain profile: what the job is given, and where it may write."""

from pathlib import Path

from launch import cli
from tests.helpers.training import write_config


def test_the_job_gets_the_resolved_config_and_the_counts(setup_folder, tmp_path, monkeypatch):
    calls: list[tuple[list[str], Path, int]] = []

    def run_ranks(command: list[str], out: Path, nproc: int, *, to_stderr: bool) -> int:
        assert not to_stderr  # the page is what was asked for
        calls.append((command, out, nproc))
        return 0

    monkeypatch.setattr("launch.local.run_ranks", run_ranks)
    config = write_config(setup_folder, "cli", out=str(tmp_path))
    words = [config, "run.global_batch=10", "--nproc", "2", "--steps", "3", "--warmup", "4"]
    assert cli.run(["profile", *words]) == 0
    ((command, out, nproc),) = calls
    assert (out, nproc) == (tmp_path / "profile", 2)
    assert command[-6:] == [
        "ovtrain.profile",
        str(out / "config.yaml"),
        *("--steps", "3", "--warmup", "4"),
    ]
    assert "global_batch: 10" in (out / "config.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["profile"]


def test_a_wrong_config_is_one_error_and_starts_nothing(setup_folder, tmp_path, capsys):
    config = write_config(setup_folder, "cli", out=str(tmp_path))
    assert cli.run(["profile", config, "run.global_batch=1", "--nproc", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())
