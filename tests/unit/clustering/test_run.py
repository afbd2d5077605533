import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clustering import job, keys, run, stages
from clustering.kmeans import array_file
from clustering.quality import purity
from clustering.run import main
from ovtrain.data.shards import ShardReader
from ovtrain.schema.atomic import write_json
from ovtrain.schema.features import FeatureStore, write_part, write_store
from ovtrain.schema.labels import CentroidStore, LabelStore
from ovtrain.schema.sample import key_hash
from tests.unit.clustering.clusterings import ALONE
from tests.unit.clustering.shapes import encode, moving_square, travel, write_shard

SETTINGS = ["clusters=4", "top=2"]


@pytest.fixture(scope="module")
def out(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    assert main([str(shards), "--out", str(folder), *SETTINGS]) == 0
    return folder


def test_labels_of_clips_follow_their_motion(out, shards, tmp_path):
    reader = ShardReader(shards)
    labels = LabelStore.read(out / "labels", reader.manifest.fingerprint)
    assert (np.diff(labels.offsets) == 2).all()
    ways = sorted({key.split("-")[2] for key in reader.keys})
    known = {key: ways.index(key.split("-")[2]) for key in reader.keys}
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"classes": ways, "labels": known}))
    assert purity(labels, reader, path)["purity"] > 0.7


def test_every_output_is_there(out):
    assert len(FeatureStore(out / "features").keys) == 24
    assert CentroidStore.read(out / "centroids").centroids.shape[0] == 4
    about = json.loads((out / "quality.json").read_text())
    assert (about["samples"], about["clusters"], about["without_labels"]) == (24, 4, 0)
    assert (out / "skipped.jsonl").read_text() == ""


def test_stages_run_again_only_when_something_changed(out, shards, capsys):
    arguments = [str(shards), "--out", str(out)]
    assert main([*arguments, *SETTINGS]) == 0
    assert capsys.readouterr().out.count("unchanged") == 3
    assert main([*arguments, "clusters=4", "top=3"]) == 0
    assert capsys.readouterr().out.count("unchanged") == 2
    assert main([*arguments, "clusters=3", "top=2"]) == 0
    assert capsys.readouterr().out.count("unchanged") == 1
    assert main([*arguments, *SETTINGS]) == 0
    (out / "labels" / "store.json").unlink()
    capsys.readouterr()
    assert main([*arguments, *SETTINGS]) == 0
    assert capsys.readouterr().out.count("unchanged") == 2


def test_held_out_samples_get_labels_of_given_centers(out, shards, tmp_path):
    payloads = {f"h{i}": encode(moving_square(travel(40, 0), seed=90 + i)) for i in range(3)}
    held = write_shard(tmp_path / "held", "video", payloads)
    centers = str(out / "centroids")
    arguments = [str(held), "--out", str(tmp_path / "o"), "--centroids", centers, *SETTINGS]
    assert main(arguments) == 0
    assert not (tmp_path / "o" / "centroids").exists()
    labels = LabelStore.read(tmp_path / "o" / "labels", ShardReader(held).manifest.fingerprint)
    trained = LabelStore.read(out / "labels")
    rights = [k for k in ShardReader(shards).keys if k.endswith("right")]
    usual = {int(trained.lookup(h)[0]) for h in key_hash(rights)}
    assert {int(labels.lookup(h)[0]) for h in key_hash(list(payloads))} <= usual


def test_a_bad_sample_is_listed_and_has_no_label(damaged, tmp_path):
    assert main([str(damaged), "--out", str(tmp_path), *SETTINGS]) == 0
    (entry,) = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert entry["file"] == "video-000000.tar/clip-01-left"
    labels = LabelStore.read(tmp_path / "labels")
    assert len(labels.keys) == 24
    assert len(labels.lookup(key_hash(["clip-01-left"])[0])) == 0


def test_images_are_clustered_too(tmp_path):
    from tests.helpers.shards import write_shards

    write_shards(tmp_path / "s", "image", 12, size=28)
    assert main([str(tmp_path / "s"), "--out", str(tmp_path / "o"), "clusters=3", "top=2"]) == 0
    assert len(LabelStore.read(tmp_path / "o" / "labels").ids) == 24


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["clusters=400000"], "24 samples.*clusters=24"),
        (["clusters=3", "top=9"], "top=9 exceeds clusters=3"),
        (["cluster=3"], "unknown key 'cluster'"),
        (["teacher=clip"], "needs teacher_dir"),
    ],
)
def test_wrong_settings_are_one_line_and_status_2(shards, tmp_path, capsys, overrides, said):
    assert main([str(shards), "--out", str(tmp_path), *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(said, error)
    assert not (tmp_path / "features").exists()


def test_module_prints_no_traceback(tmp_path):
    command = [sys.executable, "-m", "clustering.run", str(tmp_path), "--out", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_stages_alone_say_what_they_need(shards, tmp_path, capsys):
    command = [str(shards), "--out", str(tmp_path), *SETTINGS]
    assert main([*command, "--stage", "centers"]) == 2
    assert "no features of these shards" in capsys.readouterr().err
    assert main([*command, "--stage", "features", "--task", "0/2", "part_samples=5"]) == 0
    assert "other tasks are not done yet" in capsys.readouterr().out
    assert main([*command, "--stage", "centers"]) == 2
    assert main([*command, "--stage", "features", "--task", "1/2", "part_samples=5"]) == 0
    capsys.readouterr()
    assert main([*command, "--stage", "labels"]) == 2
    assert "no centers of these shards" in capsys.readouterr().err
    assert main([*command, "--stage", "centers"]) == 0
    assert main([*command, "--stage", "labels"]) == 0
    assert len(LabelStore.read(tmp_path / "labels").keys) == 24
    rows = [json.loads(line) for line in (tmp_path / "convergence.jsonl").read_text().splitlines()]
    assert rows[-1]["final"]
    assert not (tmp_path / "kmeans").exists()


def test_a_run_that_ends_before_its_stage_is_marked_loses_no_centers(
    shards, tmp_path, capsys, monkeypatch
):
    command = [str(shards), "--out", str(tmp_path), *SETTINGS]

    class Killed(Exception):
        pass

    for stage in ("centers", "labels"):

        def dying(path, value, stage=stage):
            if path.name == "stages.json" and stage in value:
                raise Killed
            write_json(path, value)

        with monkeypatch.context() as patched:
            patched.setattr(stages, "write_json", dying)
            with pytest.raises(Killed):
                main(command)
        rest = tmp_path / {"centers": "kmeans", "labels": "labels.partial"}[stage]
        assert rest.is_dir()
        assert ("k-means" in capsys.readouterr().out) == (stage == "centers")
    assert main(command) == 0
    assert capsys.readouterr().out.count("unchanged") == 2
    assert not (tmp_path / "kmeans").exists()
    assert not rest.exists()


def test_a_part_that_is_gone_is_made_again(shards, tmp_path, capsys):
    command = [str(shards), "--out", str(tmp_path), *SETTINGS]
    assert main(command) == 0
    for name in ("part-00000.json", "part-00000.npy"):
        (tmp_path / "features" / name).unlink()
        capsys.readouterr()
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "features: 24 samples" in said
        assert said.count("unchanged") == 2  # the same features: what came of them stays


def test_centers_and_labels_are_of_the_features_that_are_there(shards, tmp_path, capsys):
    command = [str(shards), "--out", str(tmp_path), *SETTINGS]
    assert main(command) == 0
    store = FeatureStore(tmp_path / "features")
    (part,) = store.parts
    other = write_part(store.folder, part.name, -store.array(), store.keys, stamp=part.stamp)
    write_store(store.folder, [other], store.teacher, store.fingerprint)
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.count("unchanged") == 1
    assert main(command) == 0
    assert capsys.readouterr().out.count("unchanged") == 3


def test_memory_counts_among_the_settings_where_cells_are_cut_to_it(shards, tmp_path, capsys):
    command = [str(shards), "--out", str(tmp_path), *SETTINGS]
    for more, unchanged in (
        (["memory_gib=3"], 0),
        (["memory_gib=4"], 3),
        (["memory_gib=4", "coarse=2"], 1),
        (["memory_gib=5", "coarse=2"], 1),
    ):
        assert main([*command, *more]) == 0
        assert capsys.readouterr().out.count("unchanged") == unchanged, more


def test_given_centers_are_only_read(out, shards, tmp_path, monkeypatch):
    flags, real = [], os.open

    def opened(path, how, *more, **named):
        if Path(path).name == "centroids.npy":
            flags.append(how)
        return real(path, how, *more, **named)

    monkeypatch.setattr(array_file.os, "open", opened)
    centers = ["--centroids", str(out / "centroids")]
    assert main([str(shards), "--out", str(tmp_path), *centers, *SETTINGS]) == 0
    assert flags
    assert not any(how & (os.O_RDWR | os.O_WRONLY) for how in flags)


@pytest.mark.parametrize("stage", ["features", "centers", "labels"])
@pytest.mark.parametrize("most", [300, 1_500])
def test_a_full_disk_is_one_line_that_names_the_file(shards, tmp_path, capsys, stage, most):
    command = [str(shards), "--out", str(tmp_path), "clusters=20", "top=20"]
    for before in ("features", "centers")[: ("features", "centers", "labels").index(stage)]:
        assert main([*command, "--stage", before]) == 0
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        assert main([*command, "--stage", stage]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.match(rf"error: {tmp_path}/\S+: File too large", capsys.readouterr().err)
    assert main(command) == 0


def test_centers_are_either_given_or_made(out, shards, tmp_path, capsys):
    given = ["--centroids", str(out / "centroids"), "--stage", "centers"]
    assert main([str(shards), "--out", str(tmp_path), *given, *SETTINGS]) == 2
    assert "--stage centers: with --centroids none are made" in capsys.readouterr().err


def test_ranks_wait_for_each_other_for_days(shards, tmp_path, monkeypatch):
    asked = []

    def started(*, timeout_s):
        asked.append(timeout_s)
        return ALONE

    monkeypatch.setattr(run, "start_world", started)
    assert main([str(shards), "--out", str(tmp_path), *SETTINGS]) == 0
    assert asked[0] > 86_400


@pytest.mark.parametrize("task", ["3/2", "1", "x/2", "-1/2"])
def test_a_share_that_is_none_is_refused(shards, tmp_path, capsys, task):
    command = [str(shards), "--out", str(tmp_path), "--stage", "features", f"--task={task}"]
    assert main([*command, *SETTINGS]) == 2
    assert "allowed: I/N" in capsys.readouterr().err


def test_an_approximate_search_tells_its_recall(out, shards, tmp_path):
    centers = ["--centroids", str(out / "centroids")]
    command = [str(shards), "--out", str(tmp_path), *centers, *SETTINGS]
    assert main([*command, "search=ivf", "recall=1.0"]) == 0
    about = json.loads((tmp_path / "quality.json").read_text())["search"]
    assert (about["search"], about["recall"]) == ("ivf", 1.0)
    same = LabelStore.read(out / "labels")
    assert (LabelStore.read(tmp_path / "labels").ids == same.ids).all()
    assert main([*command, "search=hnsw", "center_shards=2"]) == 2


def test_settings_say_where_labels_came_from(out, shards):
    about = json.loads((out / "settings.json").read_text())
    assert (about["shards"], about["centroids"]) == (str(shards.resolve()), None)
    assert about["config"]["clusters"] == 4


def test_features_made_before_are_used_where_they_are_of_these_shards(
    out, shards, tmp_path, capsys
):
    made = ["--features", str(out / "features")]
    assert main([str(shards), "--out", str(tmp_path / "a"), *made, *SETTINGS]) == 0
    said = capsys.readouterr().out
    assert "features" not in said.replace("looking through the features", "")
    assert not (tmp_path / "a" / "features").exists()
    for name in ("keys", "ids"):
        one, other = (folder / "labels" / f"{name}.npy" for folder in (out, tmp_path / "a"))
        assert one.read_bytes() == other.read_bytes()
    other = write_shard(
        tmp_path / "s", "video", {"k": encode(moving_square(travel(40, 0), seed=1))}
    )
    assert main([str(other), "--out", str(tmp_path / "b"), *made, "clusters=1", "top=1"]) == 2
    assert "features of shards" in capsys.readouterr().err


def test_equal_keys_are_named_before_the_feature_pass(shards, tmp_path, capsys, monkeypatch):
    reader = ShardReader(shards)
    monkeypatch.setattr(job, "ShardReader", lambda _: reader)
    monkeypatch.setattr(keys, "AT_ONCE_BITS", 2)
    reader.hashes = reader.hashes.copy()
    reader.hashes[9] = reader.hashes[3]
    assert main([str(shards), "--out", str(tmp_path), *SETTINGS]) == 2
    said = capsys.readouterr().err
    assert f"{reader.name(3)} and {reader.name(9)} have the same key" in said
    assert not (tmp_path / "features").exists()
    assert not (tmp_path / "settings.json").exists()
