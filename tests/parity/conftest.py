"""Training runs that several parity tests read: each is done once per session."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ovtrain.checkpoint import storage
from tests.helpers.training import fit, typed_config, write_config
from tests.helpers.world import succeed, torchrun
from tests.parity.gradients import Gradients, Step, keep
from tests.parity.traffic_cases import CASES, write_case

UNEVEN: dict[str, Any] = {
    **{"global_batch": 7, "steps": 20, "checkpoint_every": 100},
    "attention_heads": 4,
}
"""Seven samples of two sources on two ranks: no two ranks or micro-steps hold equally many."""

OTHER_LOSSES: dict[str, Any] = {
    "heads": {
        "video": {"loss": "margin_softmax", "scale": 8.0},
        "image": {"loss": "mlcd", "scale": 8.0, "sample_rate": 0.5},
    },
    "steps": 8,
}
"""Both need sums over all ranks' rows before their gradients."""

ONE_PROCESS = {
    "deepspeed-1": {"checkpoint_every": 9},
    "deepspeed-1-accumulated": {"micro_batch": 3},
}
TWO_PROCESSES = {
    "ddp-2": {"backend": "ddp"},
    "ddp-2-accumulated": {"backend": "ddp", "micro_batch": 2, "forward_ahead": True},
    "deepspeed-2": {"checkpoint_every": 3},
    "deepspeed-2-accumulated": {"micro_batch": 2, "forward_ahead": True, "overlap_comm": True},
    "zero2-2-accumulated": {
        **{"zero_stage": 2, "micro_batch": 2},
        **{"forward_ahead": True, "overlap_comm": True},
    },
    "losses-zero1-2-accumulated": {**OTHER_LOSSES, "micro_batch": 2},
    "losses-zero2-2": {**OTHER_LOSSES, "zero_stage": 2},
    "zero3-2": {"zero_stage": 3, "checkpoint_every": 9},
    "zero3-2-accumulated": {"zero_stage": 3, "micro_batch": 2, "recompute": 1},
    "losses-zero3-2": {**OTHER_LOSSES, "zero_stage": 3},
}
TENSOR_2 = {
    "tp2-zero1": {"tensor_parallel": 2, "sequence_parallel": False, "micro_batch": 3},
    "tp2-ddp-sequence": {
        **{"tensor_parallel": 2, "backend": "ddp", "micro_batch": 3},
        **{"forward_ahead": True, "recompute": 2},
    },
}
THREE_PROCESSES = {"zero2-3": {"zero_stage": 2}}
FOUR_PROCESSES = {
    "ddp-4-accumulated": {"backend": "ddp", "micro_batch": 2},
    "zero1-4": {},
    "zero3-4": {"zero_stage": 3},
}
TENSOR_4 = {
    "tp2-zero2-4-sequence": {
        **{"tensor_parallel": 2, "zero_stage": 2, "micro_batch": 2},
        **{"checkpoint_every": 9, "forward_ahead": True, "overlap_comm": True},
    },
    "tp2-zero3-4-sequence": {"tensor_parallel": 2, "zero_stage": 3, "recompute": 1},
    "tp4-zero1-4": {"tensor_parallel": 4, "sequence_parallel": False},
}
"""Tensor ranks: two processes and four."""
CONTINUED: dict[int, dict[str, tuple[str, dict[str, Any]]]] = {
    2: {
        "zero3-after-one-process": ("deepspeed-1", {"zero_stage": 3}),
        "zero3-after-zero3": ("zero3-2", {"zero_stage": 3}),
        "zero1-after-zero3": ("zero3-2", {"zero_stage": 1}),
    },
    3: {
        "zero2-on-3-after-zero3-on-2": ("zero3-2", {"zero_stage": 2}),
        "zero3-on-3-after-zero1-on-2": ("deepspeed-2", {"zero_stage": 3}),
    },
    4: {
        "zero2-on-4-after-zero3-on-2": ("zero3-2", {"zero_stage": 2}),
        "zero3-on-4-after-zero1-on-2": ("deepspeed-2", {"zero_stage": 3, "micro_batch": 2}),
        "zero1-on-4-after-tp2-zero2": ("tp2-zero2-4-sequence", {}),
        "tp4-zero1-after-tp2-zero2": ("tp2-zero2-4-sequence", {"tensor_parallel": 4}),
    },
}
"""By number of processes: runs that go on from the step-18 checkpoint of another run."""


@dataclass(frozen=True)
class Runs:
    """``folder / name`` is a finished run; ``collectives``: what two processes measured;
    ``traffic``: by name of a case, what each rank exchanged and held."""

    folder: Path
    collectives: dict[str, Any]
    traffic: dict[str, list[dict[str, Any]]]

    def out(self, name: str) -> Path:
        return self.folder / name


def run_of(folder: Path, name: str, run: dict[str, Any], begin: str = "") -> str:
    """A run as the job takes it; ``begin``: the run whose step-18 checkpoint it goes on from."""
    config = write_config(folder, name, **(UNEVEN | run))
    return f"{config}={folder / begin / 'checkpoints' / storage.step_name(18)}" if begin else config


def launch(folder: Path, processes: int, runs: list[str]) -> dict[str, Any]:
    """Do ``runs``, as ``run_of`` gives them, on so many processes; what the job measured."""
    found = folder / f"collectives-{processes}.json"
    succeed(torchrun(processes, "-m", "tests.parity.job", str(found), *runs, timeout=1200))
    return json.loads(found.read_text())


@pytest.fixture(scope="session")
def runs(setup_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(setup_folder, folder, dirs_exist_ok=True)
    plain = {"plain": {}, "plain-accumulated": {"micro_batch": 3}, "losses-plain": OTHER_LOSSES}
    gradients: list[Step] = []
    for name, run in plain.items():
        settings = UNEVEN | {"backend": "ddp", "out": str(folder / name)} | run
        watch = (lambda parts: Gradients(parts, gradients.append)) if name == "plain" else None
        config = typed_config(folder, **settings)
        fit(config, watch)
        if name == "plain":
            keep(folder, config, gradients)
    found: dict[str, Any] = {}
    straight = {
        1: ONE_PROCESS,
        2: TWO_PROCESSES | TENSOR_2,
        3: THREE_PROCESSES,
        4: FOUR_PROCESSES | TENSOR_4,
    }
    for processes, named in straight.items():
        told = [run_of(folder, name, run) for name, run in named.items()]
        later = CONTINUED.get(processes, {}).items()
        told += [run_of(folder, name, run, begin) for name, (begin, run) in later]
        counted = {n: case for n, case in CASES.items() if case.processes == processes}
        told += [write_case(folder, name, case) for name, case in counted.items()]
        found[str(processes)] = launch(folder, processes, told)
    traffic = {name: of for part in found.values() for name, of in part["traffic"].items()}
    return Runs(folder, found["2"], traffic)
