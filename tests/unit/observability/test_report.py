"""The report is one self-contained page, in a real browser too, and copes with absent inputs."""

import json
import math

import pytest

from ovtrain.observability.report import write_report
from ovtrain.observability.report.charts import MOST_POINTS, Series, color, line_chart, thinned
from ovtrain.observability.report.numbers import number, ticks
from ovtrain.schema.errors import OvtrainError
from tests.helpers.browser import check_markup, check_self_contained, look
from tests.unit.observability.folder import write_demo


def test_every_part_of_a_demo_is_shown(tmp_path):
    page = write_report([write_demo(tmp_path)]).read_text()
    check_markup(page)
    for text in (
        *("linear probe", "chance 0.062", "0.680", "shuffled (control)", "loss, source video"),
        *("0.500", "0.5 / 0.375 / 0.125", "samples per cluster", "unreadable", "A made-up note."),
        *("Lowered something.", "3.23M", "88.0", "data:image/png;base64,"),
        "labels/train-video/report.html",
        *("waiting for data", "batches ready", "ms per sample", "<td>cut short</td>"),
    ):
        assert text in page, text


def test_nothing_is_fetched_and_names_are_escaped(tmp_path):
    page = write_report([write_demo(tmp_path)]).read_text()
    check_self_contained(page)
    assert "a<script>.mp4" not in page
    assert "<b>nod</b>" not in page


def test_an_empty_demo_names_what_is_absent(tmp_path):
    (tmp_path / "demo.json").write_text("{}")
    page = write_report([tmp_path]).read_text()
    check_markup(page)
    assert page.count('class="absent"') == 11
    for text in ("the probe has not run", "no training has logged", "nothing has been clustered"):
        assert text in page


def test_what_selected_the_patches_is_said(tmp_path):
    out = write_demo(tmp_path)
    for name, origins in {"a": {"hevc-transcode": 5}, "b": {"hevc-transcode": 2}}.items():
        (out / name).mkdir()
        (out / name / "summary.json").write_text(json.dumps({"origins": origins}))
    page = write_report([out]).read_text()
    assert "The patches of all 7 clips were selected by exact codec signals." in page
    (out / "b/summary.json").write_text('{"origins": {"pixel-estimate": 2}}')
    page = write_report([out]).read_text()
    assert "The patches of 5 of 7 clips were selected by exact codec signals, the others" in page
    assert "estimated: block matching" in page
    check_markup(page)


def test_a_skipped_probe_and_broken_files_are_said(tmp_path):
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/result.json").write_text('{"skipped": "no classes"}')
    (tmp_path / "stages.json").write_text("{not json")
    (tmp_path / "panels").mkdir()
    (tmp_path / "panels/a.png").write_bytes(b"no picture")
    page = write_report([tmp_path]).read_text()
    assert "Probe skipped: no classes" in page
    assert "is not a PNG or JPEG picture" in page
    check_markup(page)


def test_no_folder_is_a_typed_error(tmp_path):
    with pytest.raises(OvtrainError, match="no such folder"):
        write_report([tmp_path / "absent"])


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0.13, 0.87, 4) == [0.2, 0.4, 0.6, 0.8]
    assert ticks(3, 3) == [3]


def test_a_spread_that_is_rounding_is_no_axis():
    value = 45678.9
    nearly = math.nextafter(value, math.inf)
    assert ticks(value, nearly) == [value]
    assert ticks(0.0, 5e-324) == [0.0]
    chart = line_chart("t", [Series("a", [(1.0, value), (2.0, nearly)])], "x", "y")
    assert ">42k<" in chart  # a tenth above and below it
    assert ">50k<" in chart


def test_a_number_is_rounded_before_its_unit_is_chosen():
    found = [number(v) for v in (999.7, 999_700.0, 9999.7, 9995.5, -999_700.0, 999_999_999)]
    assert found == ["1000", "1M", "10k", "9996", "-1M", "1G"]
    assert [number(v, 4) for v in (99_996.0, 999.97, 1234)] == ["100k", "1000", "1234"]
    assert number(6.55e18) == "6.55E"


def test_no_two_lines_have_one_colour():
    assert len({color(n) for n in range(40)}) == 40


def test_numbers_are_short():
    found = [number(v) for v in (0, 7, 0.00012, 4164.2, 3227328, 1.2e11)]
    assert found == ["0", "7", "0.00012", "4164", "3.23M", "120G"]


def test_thinned_series_keep_their_ends_and_their_peaks():
    points = [(float(i), float(i)) for i in range(5001)]
    points[1234] = (1234.0, 1e6)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 2
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert points[1234] in kept
    assert kept == sorted(kept)


def test_a_chart_of_one_point_or_a_flat_line_has_no_nan():
    for points in ([(1.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)], []):
        assert "nan" not in line_chart("t", [Series("a", points)], "x", "y")


def test_pictures_and_charts_show_in_a_browser(tmp_path):
    page = write_report([write_demo(tmp_path / "demo")])
    script = (
        "const p=[...document.images];"
        "const c=document.querySelector('.chart svg'),r=c.getBoundingClientRect();"
        "c.dispatchEvent(new PointerEvent('pointermove',{clientX:r.left+r.width/2,"
        "clientY:r.top+r.height/2}));"
        "document.title='looked '+p.length+' '+p.filter(i=>i.naturalWidth>0).length+' '+"
        "document.getElementById('tip').textContent+' '+"
        "(document.documentElement.scrollWidth<=innerWidth)"
    )
    seen = look(page, tmp_path, script)
    assert seen.startswith("looked 2 2 step ")
    assert "seed-0" in seen
    assert seen.endswith(" true")  # no sideways scrolling
