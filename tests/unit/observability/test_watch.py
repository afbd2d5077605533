"""The terminal view needs nothing but metrics.jsonl."""

import io

import pytest

from ovtrain.observability.watch import sparkline, watch
from ovtrain.schema.errors import OvtrainError
from tests.unit.observability.folder import write_run


def test_runs_below_a_folder_are_shown(tmp_path):
    write_run(tmp_path / "a/stage2", video=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/metrics.jsonl").write_text("")
    shown = io.StringIO()
    watch(tmp_path, stream=shown)
    text = shown.getvalue()
    assert "a/stage2  step 400" in text
    assert "loss/video" in text
    assert "data wait 3.1 %   3.1 ms/step   communication 12.5 %" in text
    assert "ms/sample read 0.2  decode 10.1   2 batches ready" in text
    assert "bad samples 3: cut short 1, does not decode 2" in text
    assert "b: no metrics yet" in text


def test_no_run_is_a_typed_error(tmp_path):
    with pytest.raises(OvtrainError, match=r"metrics\.jsonl"):
        watch(tmp_path)


def test_sparkline_spans_low_to_high():
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([]) == ""
    assert len(sparkline([float(i) for i in range(1000)])) == 48
