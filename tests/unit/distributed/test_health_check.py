"""Real ranks, some of them sick: the sick ones are named, and no others."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ovtrain import check
from ovtrain.distributed.health_check.local import LOCAL, Place, WrongResult, check_product
from ovtrain.schema.status import UNHEALTHY
from tests.helpers.world import environment

SCRIPT = Path(__file__).with_name("check_ranks.py")


@dataclass
class Checks:
    folder: Path
    status: dict[str, list[int]]
    said: str

    def report(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Checks:
    folder = tmp_path_factory.mktemp("checks")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env=environment(), capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Checks(folder, json.loads((folder / "status.json").read_text()), done.stderr)


def test_slow_wrong_and_silent_ranks_are_named_and_no_others(checks: Checks):
    report = checks.report("sick")
    assert checks.status["sick"][:3] == [UNHEALTHY] * 3
    assert report["bad_nodes"] == ["n1", "n2", "n3"]
    assert report["problems"] == [
        "rank 3 on n3 did not answer within 5 s; the last it said: disk",
        "rank 2 on n2: copy: wrong result: 1 of 4 row sums and 1 of 4 column sums of a product",
        "rank 1 on n1: gemm_tflops 2 TFLOP/s, the median is 10",
    ]
    assert "error: health check: rank 3 on n3 did not answer within 5 s" in checks.said


def test_a_rank_that_dies_on_the_way_is_named_not_those_that_wait_for_it(checks: Checks):
    report = checks.report("killed")
    assert checks.status["killed"] == [UNHEALTHY, -9, UNHEALTHY]
    assert report["bad_nodes"] == ["n1"]
    (problem,) = report["problems"]
    assert problem.startswith("rank 1 on n1 did not answer within 5 s; the last it said: ")


def test_a_device_that_fails_is_named_and_keeps_nobody_waiting(checks: Checks):
    report = checks.report("broken")
    assert checks.status["broken"] == [UNHEALTHY] * 2
    assert report["problems"] == [
        "rank 1 on n1: product of matrices: RuntimeError: CUDA error: an illegal memory access"
    ]
    assert report["links"] == []


def test_sound_ranks_measure_every_device_and_link(checks: Checks):
    report = checks.report("sound")
    assert checks.status["sound"] == [0, 0, 0]
    assert (report["sound"], report["bad_nodes"], report["problems"]) == (True, [], [])
    assert report["measured"] == [
        "all_reduce_gbs", "copy_gbs", "disk_mbs", "gemm_tflops", "link between nodes"
    ]  # fmt: skip
    assert sorted((x["source"], x["target"]) for x in report["links"]) == [(0, 1), (1, 2), (2, 0)]
    for row in report["ranks"]:
        assert all(value > 0 for value in row["values"].values())
        assert row["device"] == "CPU"
    assert [path.name for path in checks.folder.glob(".check*")] == []


def test_a_single_process_checks_what_it_has(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(check, "job_logger", lambda *_: None)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OVTRAIN_HOST", "mine")
    assert check.main(["--out", str(tmp_path / "run" / "health.json"), "--seconds", "0.01"]) == 0
    report = json.loads((tmp_path / "run" / "health.json").read_text())
    assert report["measured"] == ["copy_gbs", "disk_mbs", "gemm_tflops"]
    assert [(r["host"], r["verdict"]) for r in report["ranks"]] == [("mine", "no fault found")]


def test_every_wrong_number_of_a_product_is_found():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-1, 2, (64, 64), generator=generator).float() for _ in range(2))
    check_product(a, b, a @ b)
    for at in (0, 777, 64 * 64 - 1):
        product = a @ b
        product.view(-1)[at] += 1
        with pytest.raises(WrongResult, match="1 of 64 row sums and 1 of 64 column sums"):
            check_product(a, b, product)


def test_a_folder_that_nobody_can_write_to_is_a_fault():
    place = Place(0, 1, "n", torch.device("cpu"), Path("/proc/nowhere"), 0.01)
    with pytest.raises(OSError, match="/proc/nowhere"):
        LOCAL["disk"](place)


@pytest.mark.parametrize("words", [["--share", "1"], ["--seconds", "0"], ["--timeout", "-1"]])
def test_options_out_of_range_are_refused(words: list[str], tmp_path: Path, capsys):
    assert check.main(["--out", str(tmp_path / "x.json"), *words]) == 2
    assert "allowed" in capsys.readouterr().err
