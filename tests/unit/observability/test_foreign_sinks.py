"""wandb and TensorBoard hold every step once, under one id, whatever killed the run between.

A real run with both, killed without notice and started again; then what wandb's server would do,
played by a stand-in.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ovtrain.observability.sinks import JsonlSink
from ovtrain.observability.sinks_tensorboard import TensorBoardSink
from ovtrain.observability.sinks_wandb import (
    WandbPlace,
    WandbSink,
    read_history,
    run_id,
    steps_in,
)
from ovtrain.schema.errors import ConfigError
from tests.helpers.training import metrics


def rows_when_written(files: Sequence[Path], count: int) -> list[dict[str, Any]]:
    """Rows of run files once they hold ``count``: wandb's own process writes them, and may still do
    so after the run has ended."""
    ends = time.monotonic() + 20
    while len(rows := [row for path in files for row in read_history(path)]) < count:
        assert time.monotonic() < ends, [row["_step"] for row in rows]
        time.sleep(0.1)
    return rows


def test_offline_files_hold_each_step_once_under_one_id(killed_run: Path):
    from wandb.proto import wandb_internal_pb2 as messages

    from ovtrain.observability.sinks_wandb import _records

    files = sorted((killed_run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 3
    assert {path.stem for path in files} == {f"run-{run_id(killed_run)}"}
    rows = rows_when_written(files, 14)
    assert [row["_step"] for row in rows] == list(range(1, 15))
    by_step = {row["step"]: row for row in metrics(killed_run)}
    for row in rows:
        assert row["loss"] == by_step[row["_step"]]["loss"]
        assert row["views/codec"] == by_step[row["_step"]]["views"]["codec"]
    records = [messages.Record.FromString(raw) for raw in _records(files[-1].read_bytes())]
    (about,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert about.project == "a-project"
    assert {item.key for item in about.config.update} >= {"model", "data", "optim", "run"}


def test_event_files_hold_each_step_once(killed_run: Path):
    code = (
        "import sys;from tensorboard.backend.event_processing.event_accumulator import *;"
        "found=EventAccumulator(sys.argv[1]).Reload();"
        "print([(e.step, e.value) for e in found.Scalars('loss')]);"
        "print(len(found.Scalars('views/codec')))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(killed_run / "tensorboard")]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    points, views = shown.strip().splitlines()
    rows = metrics(killed_run)
    assert [step for step, _ in eval(points)] == [row["step"] for row in rows]
    assert [loss for _, loss in eval(points)] == pytest.approx([row["loss"] for row in rows])
    assert views == "14"


class Server:
    """A stand-in for the module and the server behind it; ``down``: raises there."""

    def __init__(self, has: int = 0, down: str = "") -> None:
        self.has, self.down, self.steps = has, down, list[int]()

    def init(self, **given: object) -> SimpleNamespace:
        self.given = given
        self._maybe_fail("init")
        return SimpleNamespace(starting_step=self.has, log=self._log, finish=self._finish)

    def _log(self, row: dict[str, object], step: int) -> None:
        self._maybe_fail("log")
        self.steps.append(step)

    def _finish(self) -> None:
        self._maybe_fail("finish")

    def _maybe_fail(self, where: str) -> None:
        if self.down == where:
            raise ConnectionRefusedError("nobody there")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("wandb")
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        sink.write({"step": step, "loss": 1.0})
    sink.close()

    def replaced(server: Server) -> Server:
        module = ModuleType("wandb")
        module.__dict__.update(
            init=server.init,
            Settings=SimpleNamespace,
            errors=SimpleNamespace(Error=RuntimeError),
        )
        monkeypatch.setattr("ovtrain.observability.sinks_wandb._import", lambda: module)
        return server

    return replaced


def test_online_the_server_says_which_rows_it_lacks(serve, tmp_path: Path):
    server = serve(Server(has=4))
    place = WandbPlace("online", "p", "e", "g")
    sink = WandbSink(tmp_path, {"run": {"steps": 9}}, place)
    sink.write({"step": 6, "loss": 1.0})
    assert server.steps == [4, 5, 6]
    asked = {key: server.given[key] for key in ("project", "entity", "group", "mode", "resume")}
    wanted = {"project": "p", "entity": "e", "group": "g", "mode": "online", "resume": "allow"}
    assert asked == wanted
    assert server.given["id"] == (tmp_path / "wandb-id").read_text().strip()


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_server_that_is_down_costs_one_warning(serve, tmp_path: Path, caplog, where: str):
    serve(Server(down=where))
    with caplog.at_level("WARNING"):
        sink = WandbSink(tmp_path, {}, WandbPlace("online"))
        for step in (6, 7):
            sink.write({"step": step, "loss": 1.0})
        sink.close()
    (record,) = caplog.records
    assert "nobody there; metrics.jsonl has all rows" in record.getMessage()


def test_an_id_moves_with_its_folder(tmp_path: Path):
    (tmp_path / "a").mkdir()
    first = run_id(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert run_id(tmp_path / "b") == first
    (tmp_path / "c").mkdir()
    assert run_id(tmp_path / "c") != first


def test_what_is_not_installed_is_a_typed_error(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install 'ovtrain\[wandb"):
        WandbSink(tmp_path, {}, WandbPlace("offline"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"tensorboard is not installed; pip .*ovtrain\[tensorb"):
        TensorBoardSink(tmp_path, 0)


def test_what_a_torn_file_holds_is_not_sent_again(tmp_path: Path):
    """Files of many blocks; of the first one half is lost."""
    pytest.importorskip("wandb")
    metrics_file = JsonlSink(tmp_path / "metrics.jsonl")
    first = WandbSink(tmp_path, {}, WandbPlace("offline"))
    for step in range(1, 201):
        row = {"step": step, "loss": 1 / step, **{f"value/{i}": step + i for i in range(20)}}
        metrics_file.write(row)
        first.write(row)
    metrics_file.close()
    first.close()
    (torn,) = (tmp_path / "wandb").glob("*run-*/*.wandb")
    assert len(rows_when_written([torn], 200)) == 200
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    kept = steps_in(tmp_path / "wandb")
    assert kept == set(range(1, len(kept) + 1))
    assert 50 < len(kept) < 150
    time.sleep(1.1)  # wandb names its folders by the second
    WandbSink(tmp_path, {}, WandbPlace("offline")).close()
    (again,) = set((tmp_path / "wandb").glob("*run-*/*.wandb")) - {torn}
    lost = list(range(len(kept) + 1, 201))
    assert [row["_step"] for row in rows_when_written([again], len(lost))] == lost
