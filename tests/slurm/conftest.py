"""One SLURM of three nodes for all tests here."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.lab import Lab, missing


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if why := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs a SLURM: {why}")
        pytest.skip(f"no SLURM: {why}")
    with Lab(tmp_path_factory.mktemp("lab")) as started:
        yield started


@pytest.fixture
def on_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    """Commands of this process talk to the lab; nodes are as at its start."""
    for name, value in lab.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return lab
