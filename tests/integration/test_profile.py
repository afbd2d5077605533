"""A profile of real steps: the page adds up, and the run itself is not touched."""

import logging
from pathlib import Path

import pytest

from ovtrain import profile
from ovtrain.distributed.comm_time import CLOCK
from ovtrain.observability.logger import close_handlers
from ovtrain.observability.profile.trace import OTHER, PARTS, read_trace
from tests.helpers.training import write_config


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CLOCK, "named", CLOCK.named)
    yield
    log = logging.getLogger("ovtrain")
    close_handlers(log)
    log.propagate = True


def test_a_profile_accounts_for_the_whole_step_and_leaves_the_run_alone(
    setup_folder: Path, tmp_path: Path, capsys
):
    config = write_config(setup_folder, "profiled", backend="ddp", out=str(tmp_path))
    assert profile.main([config, "data.prefetch=1", "--steps", "2", "--warmup", "1"]) == 0
    folder = tmp_path / "profile"
    assert [path.name for path in tmp_path.iterdir()] == ["profile"]
    assert {p.name for p in folder.iterdir()} == {"logs", "profile.md", "trace.json.gz"}
    shown = capsys.readouterr().out
    assert shown.strip() == (folder / "profile.md").read_text().strip()
    assert "**Bound by " in shown
    found = read_trace(folder / "trace.json.gz")
    assert found.steps == 2
    assert list(found.parts) == [*(p for p in PARTS if p != "communication"), OTHER]
    assert sum(found.parts.values()) == pytest.approx(found.step_ms)
    assert found.parts[OTHER] < 0.5 * found.step_ms
    assert sum(one.ms for one in found.operators) < found.step_ms
    assert any(one.name == "aten::addmm" for one in found.operators)
