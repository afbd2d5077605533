"""Raw clips -> shards (an array of four tasks) -> labels -> the debug training on two nodes with
two ranks each -> a probe: jobs of a real SLURM that wait for one another."""

import json
import re

import pytest
from omegaconf import OmegaConf

from data_pipelines.prepare import main as prepare
from launch import cli
from ovtrain.schema.manifest import ShardManifest
from tests.helpers.training import metrics
from tests.integration.test_cluster import FEW, make_clips

pytestmark = pytest.mark.full
SITE = {
    **{"nodes": 2, "gpus_per_node": 0, "ranks_per_node": 2, "cpus_per_gpu": 1, "cpu_cores": 1},
    **{"check": False, "env": {"OMP_NUM_THREADS": "1"}},
}
SETTINGS = ["size=112", "frames=32", "images_per_clip=0"]


def pipeline(clips: str) -> dict[str, object]:
    """``pipeline/debug`` on few clips, ten steps."""
    sources = "[{name: video, shards: ${root}/data/video, labels: ${root}/labels/labels}]"
    data = {"run": "prepare", "source": clips, "out": "${root}/data", "set": SETTINGS, "tasks": 4}
    labels = {
        **{"run": "cluster", "source": "${root}/data/video", "out": "${root}/labels"},
        **{"set": ["teacher=descriptor", "clusters=6", "top=2"], "after": ["data"], "tasks": 2},
    }
    settings = [
        *("run.out=${root}/train", "run.init_from=''", "run.steps=10", "run.global_batch=8"),
        *("data.clip_frames=32", f"data.sources={sources}"),
    ]
    train = {
        **{"run": "train", "config": "pretrain/debug-stage2", "set": settings},
        "after": ["labels"],
    }
    asked = [
        *("out=${root}/probe", "train_shards=${root}/data/video", "runs=[${root}/train]"),
        *("heldout_shards=${root}/data/video", "classes=${root}/clips/classes.json"),
        *("token_budget=128", "chunks=2", "epochs=2"),
    ]
    probe = {"run": "probe", "set": asked, "after": ["train"]}
    jobs = {"data": data, "labels": labels, "train": train, "probe": probe}
    return {"root": ".", "site": "site.yaml", "jobs": jobs}


def test_a_chain_from_clips_to_a_probed_encoder(on_lab, capsys, tmp_path):
    make_clips(tmp_path / "clips", FEW, each=4, frames=32)
    OmegaConf.save(OmegaConf.create(SITE), tmp_path / "site.yaml")
    OmegaConf.save(OmegaConf.create(pipeline("clips/train")), tmp_path / "chain.yaml")
    assert cli.run(["launch", "slurm", "chain.yaml"]) == 0
    told = capsys.readouterr().out
    ids = json.loads((tmp_path / "jobs.json").read_text())["jobs"]
    assert set(re.findall(r"^job (\d+) ", told, re.MULTILINE)) == set(ids.values())

    for name in ("data", "labels", "train", "probe"):
        ended = on_lab.wait_end(ids[name], 500)
        logs = [path.read_text() for path in tmp_path.glob("*/logs/slurm-*.out")]
        assert ended == "COMPLETED", (name, logs)

    assert on_lab.states(ids["data/samples"]) == ["COMPLETED"] * 4
    assert len(list((tmp_path / "data" / "logs").glob(f"slurm-{ids['data/samples']}-*.out"))) == 4
    alone = tmp_path / "alone"
    assert prepare([str(tmp_path / "clips/train"), "--out", str(alone), *SETTINGS]) == 0
    merged, whole = (ShardManifest.read(x / "video") for x in (tmp_path / "data", alone))
    assert merged == whole
    assert merged.samples == 4 * len(FEW)

    rows = [row for row in metrics(tmp_path / "train") if "event" not in row]
    assert [row["step"] for row in rows] == list(range(1, 11))
    (attempt,) = [
        json.loads(line)
        for line in (tmp_path / "train/logs/attempts.jsonl").read_text().splitlines()
    ]
    assert attempt["nodes"] == ["n1", "n2"]
    assert (tmp_path / "train/logs/rank-00003.out").is_file()
    assert json.loads((tmp_path / "probe/result.json").read_text())["rows"]


def test_what_waits_for_a_job_that_failed_does_not_start(on_lab, capsys, tmp_path):
    (tmp_path / "clips" / "train").mkdir(parents=True)  # nothing to prepare
    OmegaConf.save(OmegaConf.create(SITE), tmp_path / "site.yaml")
    OmegaConf.save(OmegaConf.create(pipeline("clips/train")), tmp_path / "chain.yaml")
    assert cli.run(["launch", "slurm", "chain.yaml"]) == 0
    ids = json.loads((tmp_path / "jobs.json").read_text())["jobs"]
    assert "FAILED" in on_lab.wait_end(ids["data/inventory"], 60)
    for name in ("data", "labels", "train", "probe"):
        assert on_lab.wait_end(ids[name], 30) == "CANCELLED"
    assert not (tmp_path / "train/logs/attempts.jsonl").exists()
