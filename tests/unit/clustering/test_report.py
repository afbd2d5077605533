"""The page on a clustering: whole, self-contained, honest about what is not there."""

import json
import shutil

import numpy as np
import pytest

from clustering.label_blocks import LabelBlocks
from clustering.report import Request, write_report
from clustering.report.__main__ import main
from clustering.report.nearest import chosen_centers, rows_of
from clustering.run import main as cluster
from ovtrain.data.shards import ShardReader
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import LabelStore
from ovtrain.schema.sample import key_hash
from tests.helpers.browser import check_markup, check_self_contained, look

PICTURES = 'src="data:image/jpeg;base64,'


def convergence(restart, stage=None, least=0):
    row = {"restart": restart, "empty": 1, "repaired": 1, "split": 0, "largest": 9, "seconds": 0.5}
    row |= {"stage": stage} if stage else {}
    rows = []
    for i in range(3):
        numbers = {"objective": 9 - i + least, "mean_squared": 3 - i, "moved": 0.5 / (1 + i)}
        rows.append(row | numbers | {"iteration": i})
    return rows


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """Two seeds over the same clips, and their classes. Read only."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        out = folder / f"seed-{seed}"
        assert cluster([str(shards), "--out", str(out), "clusters=4", "top=2", f"seed={seed}"]) == 0
        settings = {"shards": str(shards), "config": {"seed": seed, "teacher": "<b>d</b>"}}
        (out / "settings.json").write_text(json.dumps(settings))
        rows = [*convergence(0, "coarse"), *convergence(0, least=1), *convergence(1)]
        (out / "convergence.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ways = ["right", "left", "up", "down"]
    known = {f"clip-{i:02d}-{ways[i % 4]}": i % 4 for i in range(24)}
    classes = {"classes": ["<i>right</i>", *ways[1:]], "labels": known}
    (folder / "classes.json").write_text(json.dumps(classes))
    return folder


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    page = tmp_path_factory.mktemp("page") / "page.html"
    others, classes = (runs / "seed-1",), runs / "classes.json"
    return write_report(Request(runs / "seed-0", others, classes=classes, page=page))


def test_every_part_is_shown_and_escaped(whole):
    page = whole.page.read_text()
    check_markup(page)
    check_self_contained(page)
    for text in (
        *("Cluster sizes", "Gini", "samples by margin", "Median-sized clusters", "Side by side"),
        *("coarse, restart\N{NO-BREAK SPACE}0", "adjusted Rand index with seed-1", "seed-1</td>"),
        *("&lt;b&gt;d&lt;/b&gt;", "&lt;i&gt;right&lt;/i&gt;", "<code>seed</code>"),
    ):
        assert text in page, text
    assert "<tr class=strong><td>restart\N{NO-BREAK SPACE}1</td>" in page
    assert page.count("<tr class=strong>") == 1
    assert "<b>d</b>" not in page
    assert "<i>right</i>" not in page
    assert page.count(PICTURES) == 24  # four clusters, at most eight samples of each
    assert 'class="absent"' not in page


def test_figures_come_with_chance(whole):
    (row,) = whole.agreement.values()
    assert row["samples"] == 24
    assert row["ari"] > row["ari_permuted"] + 0.3
    assert whole.classes["purity"] > whole.classes["purity_permuted"]


@pytest.mark.parametrize("width", [1400, 420])
def test_the_page_shows_in_a_browser(whole, tmp_path, width):
    script = (
        "const p=[...document.images];"
        "document.title=p.filter(i=>i.naturalWidth>i.naturalHeight).length+' '+"
        "(document.documentElement.scrollWidth<=innerWidth)"
    )
    assert look(whole.page, tmp_path, script, width) == "24 true"


def test_what_is_absent_is_named(runs, tmp_path):
    shutil.copytree(runs / "seed-0" / "labels", tmp_path / "labels")
    page = write_report(Request(tmp_path)).page.read_text()
    check_markup(page)
    for text in (
        *("No quality.json", "No convergence.jsonl", "No other run", "No classes file was named"),
        *("settings.json names no shards", "No settings.json"),
    ):
        assert text in page
    assert PICTURES not in page


def test_shards_that_moved_away_are_a_note_and_those_asked_for_an_error(runs, tmp_path, capsys):
    out = shutil.copytree(runs / "seed-0", tmp_path / "out")
    (out / "settings.json").write_text(json.dumps({"shards": str(tmp_path / "gone")}))
    page = write_report(Request(out, classes=runs / "classes.json")).page.read_text()
    assert "The shards are not at hand" in page
    assert main([str(out), "--shards", str(tmp_path / "gone")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'gone'}")


def test_samples_that_do_not_decode_are_counted(damaged, tmp_path):
    reader = ShardReader(damaged)
    rows = [np.zeros(1, np.int32)] * 24
    LabelStore.build(reader.keys, rows, 1, reader.manifest.fingerprint).write(tmp_path / "labels")
    bad = np.sort(reader.hashes) == key_hash(["clip-01-left"])
    np.save(tmp_path / "labels" / "distances.npy", np.where(bad, 0, 1).astype(np.float32))
    page = write_report(Request(tmp_path, shards=damaged)).page.read_text()
    assert (page.count(PICTURES), page.count('class="undecoded"')) == (7, 1)
    assert "1 of the samples could not be decoded" in page
    assert "does not decode" in page


def test_pictures_of_a_page_are_bounded(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("clustering.report.sheets.MOST_BYTES", 20_000)
    page = write_report(Request(runs / "seed-0", page=tmp_path / "p.html")).page.read_text()
    assert 1 < page.count(PICTURES) < 24
    assert f"{24 - page.count(PICTURES)} pictures left out" in page


def test_the_command_prints_figures_and_the_path(runs, tmp_path, capsys):
    page = str(tmp_path / "p.html")
    classes = ["--classes", str(runs / "classes.json"), "--centers", "0", "--page", page]
    assert main([str(runs / "seed-0"), str(runs / "seed-1"), *classes]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("seed-1: nmi ")
    assert shown[1].startswith("classes: purity ")
    assert shown[2] == page


def test_a_folder_without_labels_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no labels; name a folder that `ovtrain cluster` wrote" in capsys.readouterr().err


def write(folder, nearest, distances, classes):
    keys = [f"k{i}" for i in range(len(nearest))]
    rows = [np.array([c], np.int32) for c in nearest]
    LabelStore.build(keys, rows, classes, "print").write(folder)
    np.save(folder / "distances.npy", np.float32(distances)[np.argsort(key_hash(keys))])
    return [int(key) for key in key_hash(keys)]


def test_the_nearest_samples_of_each_kind_of_center_are_found(tmp_path, monkeypatch):
    sizes = [1, 2, 3, 10, 20, 30, 40, 0]
    nearest = np.repeat(np.arange(8), sizes)
    distances = np.random.default_rng(0).random(len(nearest))
    keys = write(tmp_path, nearest, distances, 8)
    monkeypatch.setattr(LabelBlocks.blocks, "__defaults__", (7,))
    found = chosen_centers(tmp_path, 4, samples=3)
    assert [(c.id, c.why) for c in found[:3]] == [
        (6, "largest"),
        (3, "median-sized"),
        (0, "smallest"),
    ]
    assert found[3].id in {1, 2, 4, 5}
    for center in found:
        own = sorted((distances[i], keys[i]) for i in np.flatnonzero(nearest == center.id))[:3]
        assert [key for key, _ in center.samples] == [key for _, key in own]
    assert len({c.id for c in chosen_centers(tmp_path, 16)}) == 7  # all that own samples
    named = chosen_centers(tmp_path, 16, [7, 2, 2])
    assert [(c.id, c.size, c.why, len(c.samples)) for c in named[:2]] == [
        (7, 0, "named", 0),
        (2, 3, "named", 3),
    ]
    assert sorted(c.id for c in named) == list(range(8))
    with pytest.raises(LabelError, match="center 8: no such center; allowed: 0 to 7"):
        chosen_centers(tmp_path, 1, [8])


def test_rows_of_keys_are_found_wherever_they_stand():
    hashes = np.array([9, 4, 7, 4_000_000_000_000], dtype=np.uint64)
    assert rows_of(hashes, [4_000_000_000_000, 9, 5]) == {9: 0, 4_000_000_000_000: 3}
    assert rows_of(hashes, []) == {}
