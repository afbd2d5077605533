"""Training runs that several parity tests read: each is done once per session."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.training import fit, typed_config, write_config
from tests.helpers.world import succeed, torchrun

UNEVEN: dict[str, Any] = {"global_batch": 7, "steps": 20, "checkpoint_every": 100}
"""Seven samples of two sources on two ranks: no two ranks or micro-steps hold equally many."""

ONE_PROCESS = {
    "deepspeed-1": {},
    "deepspeed-1-accumulated": {"micro_batch": 3},
}
TWO_PROCESSES = {
    "ddp-2": {"backend": "ddp"},
    "ddp-2-accumulated": {"backend": "ddp", "micro_batch": 2},
    "deepspeed-2": {"checkpoint_every": 3},
    "deepspeed-2-accumulated": {"micro_batch": 2},
    "zero2-2-accumulated": {"zero_stage": 2, "micro_batch": 2},
}


@dataclass(frozen=True)
class Runs:
    """``folder / name`` is a finished run; ``collectives``: what two processes measured."""

    folder: Path
    collectives: dict[str, Any]

    def out(self, name: str) -> Path:
        return self.folder / name


def _launch(folder: Path, processes: int, settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    configs = [write_config(folder, name, **(UNEVEN | run)) for name, run in settings.items()]
    found = folder / f"collectives-{processes}.json"
    succeed(torchrun(processes, "-m", "tests.parity.job", str(found), *configs))
    return json.loads(found.read_text())


@pytest.fixture(scope="session")
def runs(setup_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(setup_folder, folder, dirs_exist_ok=True)
    for name, run in {"plain": {}, "plain-accumulated": {"micro_batch": 3}}.items():
        settings = UNEVEN | {"backend": "ddp", "out": str(folder / name)} | run
        fit(typed_config(folder, **settings))
    _launch(folder, 1, ONE_PROCESS)
    return Runs(folder, _launch(folder, 2, TWO_PROCESSES))
