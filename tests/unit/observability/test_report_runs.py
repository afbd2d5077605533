"""The page on runs: one that was killed and resumed twice, three beside one another; in a browser,
wide and narrow."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ovtrain.observability.report import write_report
from ovtrain.observability.runs import read_runs
from ovtrain.schema.errors import OvtrainError
from tests.helpers.browser import check_markup, check_self_contained, look
from tests.unit.observability.folder import started, write_lines, write_run

FAULT = {"event": "fault", "kind": "spike", "step": 7, "time": 1.0, "message": "a <b>spike</b>"}


def made_up(folder: Path, lr: float, source: str = "image") -> Path:
    """A run with events, that ended well."""
    write_run(folder, video=True, offset=lr)
    start = started(0)
    config = json.loads(json.dumps(start["config"]))
    config["optim"]["lr"] = lr
    config["data"]["sources"][0] |= {"name": source, "shards": str(folder / "data" / "video")}
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    same = {"memory_mib_max": 45678.9}  # smoothing it gives values that differ by rounding
    rows = [{**row, "time": 1000.0 + row["step"], **same} for row in rows]
    write_lines(path, [start | {"config": config}, *rows, FAULT])
    return folder


@pytest.fixture(scope="module")
def three(killed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that compares the killed run with two made-up ones."""
    folder = tmp_path_factory.mktemp("three")
    bad = [{"step": 3, "source": "<i>video</i>", "name": "a.mp4", "reason": "does not decode"}]
    panels = folder / "a" / "run" / "data" / "panels"  # beside the shards
    panels.mkdir(parents=True)
    Image.linear_gradient("L").resize((600, 400)).save(panels / "clip.png")
    runs = [made_up(folder / "a" / "run", 1e-3), made_up(folder / "b" / "run", 2e-3)]
    write_lines(runs[0] / "quarantine-00000.jsonl", bad)
    return write_report([killed_run, *runs], folder / "page.html")


def test_a_page_on_a_resumed_run_shows_its_starts_and_why(killed_run: Path, tmp_path: Path):
    page = write_report([killed_run], tmp_path / "page.html").read_text()
    check_markup(page)
    check_self_contained(page)
    assert page.count("ended with &lt;-9&gt; (rank 0 on n1)") == 2  # the table of starts
    assert "before it: ended with \\u003c-9> (rank 0 on n1)" in page  # under the pointer
    (run,) = read_runs([killed_run])
    assert [(s.first, s.last) for s in run.segments] == [(0, 8), (8, 12), (12, 14)]
    assert "14 of 14" in page
    assert "No panels/*.png of the runs&#x27; sources here" in page


def test_runs_are_compared_side_by_side(three: Path):
    page = three.read_text()
    check_markup(page)
    check_self_contained(page)
    assert "3 runs compared" in page
    for text in (
        *("<td>optim.lr</td><td>0.001</td>", "<td>0.002</td>", "a &lt;b&gt;spike&lt;/b&gt;"),
        *("&lt;i&gt;video&lt;/i&gt;</td><td class=n>1</td>", "data:image/png;base64,"),
        *("<td>does not decode</td>", "0.5 / 0.375 / 0.125", ">a/run<", ">b/run<"),
        "b/run: no quarantine-*.jsonl beside its metrics.",
    ):
        assert text in page, text
    assert "<td>optim.beta" not in page  # equal keys are left out


def test_a_copied_file_is_enough(killed_run: Path, tmp_path: Path):
    shutil.copy(killed_run / "metrics.jsonl", tmp_path / "copied.jsonl")
    page = write_report([tmp_path / "copied.jsonl"], tmp_path / "page.html").read_text()
    for text in ("14 of 14", "loss, source video", "ended with &lt;-9&gt;", "the whole config"):
        assert text in page, text
    assert (tmp_path / "page.html").stat().st_size < 500_000


def test_what_is_no_run_is_a_typed_error(tmp_path: Path):
    write_run(tmp_path / "a", video=True)
    (tmp_path / "b").mkdir()
    with pytest.raises(OvtrainError, match=r"b: no metrics\.jsonl below it"):
        write_report([tmp_path / "a", tmp_path / "b"])


def test_a_folder_of_runs_compares_them(tmp_path: Path):
    for name in ("a", "b"):
        write_run(tmp_path / name, video=True)
    page = write_report([tmp_path]).read_text()
    assert "2 runs compared" in page
    assert (tmp_path / "report.html").is_file()
    (tmp_path / "empty").mkdir()
    with pytest.raises(OvtrainError, match=r"empty: no metrics\.jsonl below it"):
        write_report([tmp_path / "empty"])


@pytest.mark.parametrize("content", ["", '{"event": "start", "step": 0, "time": 5.0}\n', "{"])
def test_a_run_without_rows_has_a_page(tmp_path: Path, content: str):
    (tmp_path / "metrics.jsonl").write_text(content)
    page = write_report([tmp_path]).read_text()
    check_markup(page)
    assert "No run has logged a step." in page


SETUP = """
const out=[], figure=n=>[...document.querySelectorAll('.chart')].find(f=>
  f.querySelector('figcaption').firstChild.textContent===n);
const chart=figure('loss, all sources'), svg=chart.querySelector('svg');
const box=svg.getBoundingClientRect();
const lines=f=>[...f.querySelectorAll('svg svg polyline')].map(p=>p.getAttribute('points'));
const send=(kind,share)=>svg.dispatchEvent(new PointerEvent(kind,{bubbles:true,
  pointerType:'mouse',clientX:box.left+share*box.width,clientY:box.top+box.height/2}));
const tip=document.getElementById('tip'), other=figure('learning rate');
const say=x=>out.push(x);
"""
LAST = "say(document.documentElement.scrollWidth<=innerWidth);document.title=JSON.stringify(out)"


def ask(page: Path, folder: Path, script: str, width: int = 1400) -> list[object]:
    seen = look(page, folder, SETUP + script + ";" + LAST, width)
    return json.loads(seen)


def test_zoom_hides_scales_and_hover_answer(three: Path, tmp_path: Path):
    script = """
    const whole=lines(chart), rate=lines(other);
    say(whole.length);
    send('pointermove',.5); say(tip.style.display); say(tip.textContent);
    send('pointerdown',.3); send('pointermove',.6); say(svg.querySelectorAll('.chosen').length);
    send('pointerup',.6);
    say(lines(chart).join()!==whole.join()); say(lines(other).join()!==rate.join());
    svg.dispatchEvent(new MouseEvent('dblclick',{bubbles:true}));
    say(lines(chart).join()===whole.join()); say(lines(other).join()===rate.join());
    const name=chart.querySelectorAll('.legend button')[1];
    name.click(); say(lines(chart).length); say(name.getAttribute('aria-pressed'));
    name.click(); say(lines(chart).join()===whole.join());
    const log=[...chart.querySelectorAll('.tools button')].find(b=>b.textContent==='log');
    log.click(); say(lines(chart).join()!==whole.join()); log.click();
    const flat=figure('most memory of a rank');
    flat.querySelector('.legend button').click();  // the run that is not constant
    const slider=document.querySelector('.smoothing input'); slider.value=.9;
    slider.dispatchEvent(new Event('input'));
    say(lines(chart).length); say(lines(chart)[0]!==lines(chart)[1]);
    const ys=lines(flat).at(-1).split(' ').map(p=>p.split(',')[1]);
    say(new Set(ys).size); say([...flat.querySelectorAll('.tick')].map(t=>t.textContent).join(' '));
    """
    said = ask(three, tmp_path, script)
    count, display, tip, *answers = said
    assert (count, display) == (3, "block")
    assert all(name in str(tip) for name in ("step ", "a/run", "b/run"))
    chosen, zoomed, linked, reset, reset_too, left, pressed, back, logged, *smooth = answers
    *smooth, heights, levels, fits = smooth
    assert (chosen, left, pressed, smooth, fits) == (1, 2, "false", [6, True], True)
    assert heights == 1  # a constant stays a line
    assert "44k 46k 48k" in str(levels)
    assert all((zoomed, linked, reset, reset_too, back, logged))


def test_restarts_are_marked_and_told_under_the_pointer(killed_run: Path, tmp_path: Path):
    page = write_report([killed_run], tmp_path / "page.html")
    script = """
    const mark=svg.querySelector('.mark'); say(svg.querySelectorAll('.mark').length);
    const at=mark.getBoundingClientRect(); send('pointermove',(at.left-box.left)/box.width);
    say(tip.textContent);
    """
    count, tip, fits = ask(page, tmp_path, script, 390)
    assert (count, fits) == (2, True)
    assert "restart 1 at step 8" in str(tip)
    assert "ended with <-9> (rank 0 on n1)" in str(tip)


@pytest.mark.parametrize("width", [1400, 390])
def test_no_page_is_wider_than_its_screen(three: Path, tmp_path: Path, width: int):
    inner, charts, fits = ask(
        three, tmp_path, "say(innerWidth);say(svg.viewBox.baseVal.width<=innerWidth)", width
    )
    assert (inner, charts, fits) == (width, True, True)
