"""What a run ran in is written down, its secrets are not."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

import ovtrain
from ovtrain.engine import environment
from ovtrain.engine.environment import driver, record_environment, variables, write_code_diff
from tests.helpers.training import world


def test_versions_hosts_and_code_are_written(tmp_path: Path):
    record_environment(tmp_path, world())
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["torch"]["version"] == torch.__version__
    assert found["packages"]["numpy"]
    assert found["ranks"][0]["device"] == "CPU"
    assert found["python"]["version"].startswith("3.")
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_variables_come_by_name_and_secrets_do_not():
    known = {"NCCL_DEBUG": "INFO", "SLURM_JOB_ID": "7", "RANK": "0", "OMP_NUM_THREADS": "1"}
    secret = {
        "SLURM_JWT": "x", "OVTRAIN_API_KEY": "x", "TORCH_HUB_TOKEN": "x", "WANDB_API_KEY": "x",
        "AWS_SECRET_ACCESS_KEY": "x", "HOME": "x", "CUDA_PASSWORD": "x", "http_proxy": "x",
    }  # fmt: skip
    assert variables(known | secret) == known


def test_a_driver_is_named_where_there_is_one(tmp_path: Path):
    assert driver(tmp_path / "absent") is None
    (tmp_path / "version").write_text("NVRM version: 570.1\nGCC\n")
    assert driver(tmp_path / "version") == "NVRM version: 570.1"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    """ovtrain seems to run from here: one commit of one file."""
    root = tmp_path / "checkout"
    (root / "ovtrain").mkdir(parents=True)
    (root / "ovtrain" / "__init__.py").write_text("a = 1\n")
    monkeypatch.setattr(ovtrain, "__file__", str(root / "ovtrain" / "__init__.py"))
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    return root


def test_changes_of_the_checkout_are_kept_beside_the_run(checkout: Path, tmp_path: Path):
    (checkout / "ovtrain" / "__init__.py").write_text("a = 2\n")
    (checkout / "new.py").write_text("")
    told = write_code_diff(tmp_path)
    diff = (tmp_path / "code.diff").read_text()
    assert "-a = 1\n+a = 2\n" in diff
    assert told["diff_bytes"] == len(diff)
    assert told["untracked"] == ["new.py"]
    assert len(told["commit"]) == 40


def test_a_difference_that_is_too_long_is_left_out_and_an_old_one_goes(
    checkout: Path, tmp_path: Path, monkeypatch
):
    (tmp_path / "code.diff").write_text("of an earlier start")
    assert write_code_diff(tmp_path)["diff"] is None
    assert not (tmp_path / "code.diff").exists()
    (checkout / "ovtrain" / "__init__.py").write_text("a = 2\n")
    monkeypatch.setattr(environment, "MOST_DIFF", 10)
    told = write_code_diff(tmp_path)
    assert (told["diff"], told["diff_bytes"] > 10) == (None, True)
    assert not (tmp_path / "code.diff").exists()


def test_an_installed_package_has_no_commit(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ovtrain, "__file__", str(tmp_path / "site-packages" / "ovtrain" / "x.py"))
    assert write_code_diff(tmp_path) == {"commit": None}
