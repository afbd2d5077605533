"""The command line: fast help, one-line errors, exit statuses."""

import subprocess
import sys
import time

import pytest

from launch import cli
from launch.commands import options
from ovtrain.schema.errors import ConfigError

HEAVY = ("torch", "numpy", "av", "omegaconf", "rich", "deepspeed", "faiss")


def test_help_imports_nothing_heavy_and_is_fast():
    code = (
        "import sys; from launch import cli; status = cli.run(['--help']);"
        f"print('heavy', [m for m in {HEAVY} if m in sys.modules], status)"
    )
    start = time.perf_counter()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    assert "heavy [] 0" in shown.stdout
    for name in cli.COMMANDS:
        assert name in shown.stdout
    # 0.13 s when idle; the bound only catches an import of something heavy on a busy machine.
    assert seconds < 3


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_resolves_and_has_help(name: str, capsys):
    assert cli.run([name, "--help"]) == 0
    assert "Usage: ovtrain" in capsys.readouterr().out


def test_an_input_error_is_one_line_and_status_2(capsys):
    assert cli.run(["train", "pretrain/debug-stage1", "data.token_budgt=3"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: data.token_budgt=3: unknown key")
    assert "did you mean token_budget?" in shown.err
    assert "Traceback" not in shown.err


def test_an_unknown_command_is_status_2(capsys):
    assert cli.run(["trian"]) == 2
    assert "No such command" in capsys.readouterr().err


def test_an_interrupt_is_status_130(monkeypatch, capsys):
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "run_job", interrupted)
    monkeypatch.setattr("launch.commands.data.run_job", interrupted)
    assert cli.run(["data", "verify", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_job_gets_its_arguments_and_gives_its_status(monkeypatch):
    started: list[list[str]] = []
    monkeypatch.setattr(
        "launch.commands.data.run_job", lambda module, args: started.append([module, *args]) or 7
    )
    assert cli.run(["data", "verify", "shards", "--media"]) == 7
    assert started == [["data_pipelines.shards.verify", "shards", "--media", "--workers", "2"]]


def test_several_problems_are_reported_at_once(capsys):
    assert cli.run(["plan", "pretrain/debug-stage1", "optim.lr=-1", "run.precision=fp8"]) == 2
    shown = capsys.readouterr().err
    assert "optim.lr=-1" in shown
    assert "run.precision=fp8" in shown


def test_a_path_the_system_refuses_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.run(["demo", "--out", str(tmp_path / "file"), "seeds=1"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {tmp_path / 'file'}")
    assert "Traceback" not in shown


def test_a_typed_error_keeps_its_message(monkeypatch, capsys):
    def fail(*_: object) -> int:
        raise ConfigError("key", "found", allowed="a, b", fix="do this")

    monkeypatch.setattr("launch.commands.data.run_job", fail)
    assert cli.run(["data", "verify", "x"]) == 2
    assert capsys.readouterr().err == "error: key: found; allowed: a, b; do this\n"
