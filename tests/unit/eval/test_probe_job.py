"""The probe job over a tiny run: its table, its controls, and the inputs it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ovtrain.config.probe import ProbeConfig
from ovtrain.eval.embeddings import ClipSet
from ovtrain.eval.probe import ProbeJob, read_classes, run
from ovtrain.schema.errors import ConfigError, LabelError
from tests.helpers.training import fit, typed_config


@pytest.fixture(scope="module")
def config(setup_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ProbeConfig:
    """Random clips in three classes; the trained run is its own control."""
    folder = tmp_path_factory.mktemp("probe")
    trained = folder / "run"
    fit(typed_config(setup_folder, backend="ddp", steps=2, out=str(trained)))
    keys = ClipSet(str(setup_folder / "video")).reader.keys
    labels = {key: number % 3 for number, key in enumerate(keys)}
    classes = folder / "classes.json"
    classes.write_text(json.dumps({"classes": ["a", "b", "c"], "labels": labels}))
    return ProbeConfig(
        out=str(folder / "out"),
        train_shards=str(setup_folder / "video"),
        heldout_shards=str(setup_folder / "video"),
        heldout_labels=str(setup_folder / "video-labels"),
        classes=str(classes),
        runs=[str(trained)],
        shuffled=str(trained),
        token_budget=8,
        chunks=2,
        labels_per_class=5,
        epochs=1,
        workers=1,
    )


def test_the_table_holds_every_comparison_at_its_token_budget(config: ProbeConfig):
    result = json.loads(run(config).read_text())
    tokens = {(row["probe"], row["encoder"], row["view"]): row["tokens"] for row in result["rows"]}
    views = {"codec": 8, "frames": 8, "middle frame": 4, "random frame": 4}
    views |= {"permuted codec": 8, "blanked codec": 8}
    expected = {("linear", "trained", view): n for view, n in views.items()}
    for view in ("codec", "frames"):
        expected[("linear", "untrained", view)] = 8
        for encoder in ("trained", "untrained"):
            expected[("attentive", encoder, view)] = 8
    expected |= {(probe, "shuffled labels", "codec"): 8 for probe in ("linear", "attentive")}
    assert tokens == expected
    blanked = [row for row in result["rows"] if row["view"] == "blanked codec"]
    assert [row["mean"] for row in blanked] == [pytest.approx(1 / 3)]
    assert (result["chance"], result["heldout_clips"]) == (1 / 3, 24)
    # The control is the same run here, so its ranking must be the same as well.
    first, second = result["ranking"]
    assert (first["auc"], first["percentile"]) == (second["auc"], second["percentile"])


def test_probes_see_only_the_labelled_clips(config: ProbeConfig):
    job = ProbeJob(config)
    assert job.train.labels.bincount().tolist() == [5, 5, 5]
    assert job.heldout.labels.bincount().tolist() == [8, 8, 8]


def test_unequal_budgets_are_refused(config: ProbeConfig):
    with pytest.raises(ConfigError, match=r"token_budget=10: chunks=2 frames of 4 .*allowed: 8"):
        ProbeJob(replace(config, token_budget=10))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"classes": ["a"]}', '{"classes": ["a"], "labels": {}}',
     '{"classes": ["a"], "labels": {"x": 1}}', '{"classes": ["a"], "labels": {"x": "a"}}'],
)  # fmt: skip
def test_a_classes_file_that_is_none_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(LabelError, match=r"classes.json.*allowed: .*labels"):
        read_classes(path)


def test_clips_without_a_class_are_named(config: ProbeConfig, tmp_path: Path):
    path = tmp_path / "classes.json"
    path.write_text('{"classes": ["a"], "labels": {"other": 0}}')
    with pytest.raises(LabelError, match="no class for 24 clips, the first video-0-0000"):
        ProbeJob(replace(config, classes=str(path)))


def test_a_clip_that_cannot_be_read_is_named_and_left_out(config: ProbeConfig, tmp_path: Path):
    shutil.copytree(config.heldout_shards, tmp_path / "video")
    tar = tmp_path / "video" / "video-000000.tar"
    data = tar.read_bytes()
    at = data.index(b"ftyp")
    tar.write_bytes(data[:at] + bytes(64) + data[at + 64 :])
    result = run(replace(config, heldout_shards=str(tmp_path / "video"), out=str(tmp_path)))
    told = json.loads(result.read_text())
    assert told["heldout_clips"] == 23
    assert [entry["file"] for entry in told["skipped_clips"]] == ["video-000000.tar/video-0-0000"]
    assert "1 clips could not be read" in told["notes"][-1]
