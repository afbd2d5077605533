"""ovtrain cluster plan: what it takes from configs and options, what it prints."""

import json

import pytest

from launch import cli

IMAGE = ["cluster", "plan", "--config", "cluster/image", "--samples", "650000000"]


def test_the_papers_image_clusters_are_planned_from_their_config(capsys):
    assert cli.run([*IMAGE, "--gpus", "1", "--gpu", "h200", "--tflops", "600"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "650,000,000 samples of width 1,024, 2,000,000 centers, 10 labels each",
        *("bfloat16: 4.1 GB", "total: 49.3 GB of 141 GB", "features: 1.34 TB", "labels: 62.4 GB"),
        "labels: 2.66e+18 FLOP, reads 1.33 TB; 74 min, bound by products",
        "k-means, iterations: 20 x 2.66e+18 FLOP",
        "as config    center_shards=1 memory_gib=131",
    ):
        assert text in shown, text


def test_numbers_come_as_json(capsys):
    words = ["--gpus", "16", "--gpu", "a800", "--per-node", "8", "--iterations", "3", "--json"]
    assert cli.run([*IMAGE, *words, "restarts=2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["tflops"] == pytest.approx(0.6 * 312)
    assert found["machine"]["exchange_gbs"] == 50  # to other nodes, not over NVLink
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert stages["k-means, iterations"]["passes"] == 6
    assert found["seconds"] == pytest.approx(sum(s["seconds"] for s in found["stages"]))
    assert found["device_hours"] == pytest.approx(found["seconds"] * 16 / 3600)


def test_videos_are_as_wide_as_their_frames_together(capsys):
    words = ["--config", "cluster/video", "--samples", "100900000", "--gpus", "8", "--gpu", "h100"]
    assert cli.run(["cluster", "plan", *words]) == 0
    assert "of width 8,192, 400,000 centers" in capsys.readouterr().out
    assert cli.run(["cluster", "plan", *words, "frame_dims=512", "--frames", "4"]) == 0
    assert "of width 2,048" in capsys.readouterr().out
    assert cli.run(["cluster", "plan", *words, "projection=256"]) == 0
    assert "of width 256" in capsys.readouterr().out


def test_centers_that_do_not_fit_at_once_are_taken_in_ranges(capsys):
    for clusters, ranges in ((100_000, 1), (2_000_000, 3)):
        words = ["--gpus", "1", "--gpu", "l4", "--clusters", str(clusters)]
        assert cli.run([*IMAGE, *words]) == 0
        assert f"ranges of a shard: {ranges}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "8", "--gpu", "b300"], "--gpu b300: unknown; allowed: gb200"),
        (["--gpus", "8", "--gpu", "h200", "--center-shards", "3"], "does not divide 8 devices"),
        (["--gpus", "1", "--gpu", "cpu", "teacher=descriptor"], "give --width"),
        (["--gpus", "1", "--gpu", "cpu", "--tflops", "0"], "--tflops"),
        (["--gpus", "1", "--gpu", "cpu", "--tflops", "nan"], "nan is not a finite number"),
        (["--gpus", "1", "--gpu", "cpu", "--memory-gb", "inf"], "inf is not a finite number"),
        (["--gpus", "1", "--gpu", "cpu", "frames=-1"], "frames=-1; allowed: a positive number"),
        (["--gpus", "1", "--gpu", "cpu", "coarse=9", "--clusters", "8", "--top", "2"], "coarse=9"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words, said, capsys):
    assert cli.run([*IMAGE, *words]) == 2
    assert said in capsys.readouterr().err
