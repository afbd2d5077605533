"""A clustering is the same on any number of ranks, in any grid of them, and after any interruption:
not nearly, but to the bit, since sums are of integers."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from clustering.run import main as cluster
from ovtrain.schema.features import FeatureStore, write_part, write_store
from tests.helpers.shards import write_shards
from tests.helpers.world import environment, succeed, torchrun, torchrun_command
from tests.unit.clustering.reference import blobs

JOB = str(Path(__file__).with_name("cluster_job.py"))
FLAT = {"clusters": 50, "iterations": 6, "top": 3}
SETTINGS = {
    "flat": FLAT,
    "sphere": {**FLAT, "spherical": True, "start": "kmeans++"},
    "repaired": {**FLAT, "clusters": 300, "largest": 3.0, "bad": "skip"},
    "cells": {
        **FLAT,
        "coarse": 6,
        "memory_gib": 2.0,
    },  # memory says how many points of a cell count
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Many equal points among others, in parts of uneven sizes."""
    folder = tmp_path_factory.mktemp("store")
    x = np.concatenate([blobs(samples=2200), np.repeat(blobs(samples=10, seed=1), 80, axis=0)])
    x = np.random.default_rng(0).permutation(x)
    edges = [0, 7, 1400, 1400, len(x)]
    parts = [
        write_part(folder, f"part-{i:05d}", x[a:b], np.arange(a, b, dtype=np.uint64))
        for i, (a, b) in enumerate(pairwise(edges))
    ]
    write_store(folder, parts, "teacher", "print")
    return folder


def listed(shards: int, **more) -> str:
    return json.dumps(
        [{"name": name, "center_shards": shards, **more, **s} for name, s in SETTINGS.items()]
    )


def read(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    return {name: dict(np.load(folder / f"{name}.npz")) for name in SETTINGS}


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    succeed(torchrun(1, JOB, str(store), str(folder), listed(1)))
    return read(folder)


def same(one, other) -> None:
    for name in SETTINGS:
        for key in ("centers", "ids", "squared", "objective"):
            assert np.array_equal(one[name][key], other[name][key]), (name, key)


def test_two_ranks_divide_the_samples(store, alone, tmp_path):
    succeed(torchrun(2, JOB, str(store), str(tmp_path), listed(1)))
    same(alone, read(tmp_path))


def test_four_ranks_divide_samples_and_centers_and_take_centers_in_turn(store, alone, tmp_path):
    succeed(torchrun(4, JOB, str(store), str(tmp_path), listed(2, memory_gib=1e-5)))
    same(alone, read(tmp_path))


def test_the_settings_reach_what_they_are_for(alone, store):
    x = FeatureStore(store).array().astype(np.float64)
    for name, settings in SETTINGS.items():
        owner = alone[name]["ids"][:, 0]
        assert len(np.unique(owner)) == settings["clusters"], name
        if name != "sphere":
            squared = ((x - alone[name]["centers"][owner]) ** 2).sum(axis=1)
            assert alone[name]["objective"][-1] == pytest.approx(squared.sum(), rel=1e-6)


def written(folder: Path) -> set[tuple[str, int]]:
    """Files below ``folder`` and when they were written."""
    found: set[tuple[str, int]] = set()
    for path in folder.rglob("*"):
        try:
            found.add((str(path), path.stat().st_mtime_ns))
        except FileNotFoundError:  # renamed in between
            continue
    return found


@pytest.mark.full
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments_and_resumed_nothing_differs(store, alone, tmp_path, processes):
    """SIGKILL of everything, up to twelve times, each soon after the job has written something: how
    fast the machine is decides neither whether it is hit nor where."""
    command = torchrun_command(processes, JOB, str(store), str(tmp_path), listed(1))
    rng, hit = random.Random(processes), 0
    for _ in range(12):
        before = written(tmp_path)
        job = subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        while written(tmp_path) == before and job.poll() is None:
            time.sleep(0.02)
        try:
            job.wait(rng.uniform(0, 0.4))
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            time.sleep(0.5)  # the ranks die with it
            hit += 1
    assert hit > 3
    succeed(torchrun(processes, JOB, str(store), str(tmp_path), listed(1)))
    same(alone, read(tmp_path))


def test_the_command_on_two_processes_writes_what_it_writes_on_one(tmp_path):
    write_shards(tmp_path / "s", "image", 40, size=28)
    for processes in (1, 2):
        out = tmp_path / str(processes)
        words = ["--out", str(out), "--nproc", str(processes), "clusters=6", "top=3"]
        command = [sys.executable, "-m", "launch.cli", "cluster", str(tmp_path / "s"), *words]
        more = ["part_samples=16", "batch=4"]
        succeed(
            subprocess.run(
                [*command, *more], env=environment(), capture_output=True, text=True, check=False
            )
        )
    one, two = tmp_path / "1", tmp_path / "2"
    for file in sorted(p.relative_to(one) for p in one.rglob("*.np[yz]")):
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    found = [json.loads((folder / "quality.json").read_text()) for folder in (one, two)]
    assert found[0] == found[1]
    assert found[0]["empty"] == 0


def test_ranks_of_a_task_share_its_part_of_the_features(tmp_path):
    write_shards(tmp_path / "s", "image", 40, size=28)
    words = [str(tmp_path / "s"), "--stage", "features", "part_samples=5", "clusters=6", "top=3"]
    straight, shared = (["--out", str(tmp_path / name)] for name in ("straight", "shared"))
    assert cluster([*words, *straight]) == 0
    job = torchrun(2, "-m", "clustering.run", *words, *shared, "--task", "0/2")
    assert "other tasks are not done yet" in succeed(job)
    assert len(list((tmp_path / "shared" / "features").glob("part-*[0-9].npy"))) == 4
    assert cluster([*words, *shared, "--task", "1/2"]) == 0
    assert (
        FeatureStore(tmp_path / "shared" / "features").identity
        == FeatureStore(tmp_path / "straight" / "features").identity
    )
