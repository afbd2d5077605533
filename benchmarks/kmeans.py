"""k-means from disk against faiss-cpu's, and what it takes at a million features.

    python benchmarks/kmeans.py [--samples 100000] [--clusters 20000] [--width 1024] [--rounds 3]
    python benchmarks/kmeans.py --million [--iterations 2]
    python benchmarks/kmeans.py --plan
    python benchmarks/kmeans.py --coarse 64 --samples 100000 --clusters 4096

default      one iteration (assignment and new centers): ours, from a FeatureStore on disk, with
             both engines, against ``faiss.Kmeans`` with the same features as float32 in memory and
             the same centers to begin with; interleaved. Before that, all do one iteration, and
             their objectives are compared
--million    1,000,000 x 1,024 features and 20,000 centers in a process of its own: seconds of each
             iteration, and the most memory it ever had (VmHWM)
--plan       ``ovtrain cluster plan`` against runs at three sizes, with its values for a CPU:
             seconds of an iteration, and memory
--coarse     cells first: time and objective against the flat k-means
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feature_data import make_store
from measure import interleaved, line

from clustering.centers import CenterJob, make_centers
from clustering.kmeans.lloyd import Lloyd
from clustering.kmeans.passes import Passes
from clustering.kmeans.state import FolderState
from clustering.neighbours import make_layout
from clustering.points import Points
from clustering.search import faiss_module
from clustering.survey import look
from launch.cluster_plan import PlanRequest, machine_of
from ovtrain.config.cluster import ClusterConfig
from ovtrain.costs.clustering import Problem, center_memory, kmeans_plan, layout
from ovtrain.distributed.context import World
from ovtrain.schema.features import FeatureStore

ALONE = World(0, 0, 1, torch.device("cpu"), None)
SIZES = ((50_000, 1024, 2_000), (100_000, 1024, 10_000), (200_000, 512, 20_000))


def silent(_: str) -> None:
    """Nothing is said while it is timed."""


class Ours:
    """A k-means that is asked for one iteration at a time."""

    def __init__(self, store: FeatureStore, folder: Path, clusters: int, engine: str) -> None:
        config = ClusterConfig(clusters=clusters, iterations=10**6, engine=engine)
        shutil.rmtree(folder, ignore_errors=True)
        points = Points(store, ALONE.device, False, np.empty(0, np.int64))
        place = make_layout(ALONE, len(store), clusters, store.width, config.memory_gib, 1)
        passes = Passes(points, place, clusters, engine, 1.0, silent)
        self.state = FolderState(folder, "stamp", len(store), clusters, store.width, ALONE)
        self.lloyd = Lloyd(points, config, passes, self.state, silent)
        self.lloyd.begin(None)

    def __call__(self) -> None:
        self.lloyd.iterate()

    def centers(self, clusters: int) -> np.ndarray:
        return self.state.centers(self.state.progress.slot).read(0, clusters)

    @property
    def objectives(self) -> list[float]:
        return [row["objective"] for row in self.state.progress.rows]


def against_faiss(given: argparse.Namespace, folder: Path) -> str:
    faiss = faiss_module()
    store = make_store(folder / "store", given.samples, given.width, given.clusters)
    ours = {
        engine: Ours(store, folder / engine, given.clusters, engine) for engine in ("gemm", "faiss")
    }
    x = store.array().astype(np.float32)
    first = ours["gemm"].centers(given.clusters)

    def peer(iterations: int = 1) -> list[float]:
        """Of each iteration the objective of the centers before it, as ours tells it."""
        model = faiss.Kmeans(
            given.width, given.clusters, niter=iterations, min_points_per_centroid=1,
            max_points_per_centroid=given.samples,
        )  # fmt: skip
        model.train(x, init_centroids=first)
        return list(model.obj)

    told = peer(2)
    for engine in ours.values():
        engine()
        engine()
    differ = {n: abs(o.objectives[1] / told[1] - 1) for n, o in ours.items()}
    variants = {**ours, "faiss.Kmeans": peer}
    times = interleaved(variants, warm_up=0, rounds=given.rounds)
    base = times["faiss.Kmeans"]["median_ms"]
    return line(
        "kmeans",
        samples=given.samples, width=given.width, clusters=given.clusters, rounds=given.rounds,
        variants=times, objective_differs=differ,
        peer_over_ours={name: round(base / times[name]["median_ms"], 2) for name in ours},
    )  # fmt: skip


def most_memory_mib() -> int:
    """VmHWM: the most resident memory of this process so far, mapped pages included."""
    text = Path("/proc/self/status").read_text()
    return int(next(t for t in text.splitlines() if t.startswith("VmHWM")).split()[1]) // 1024


def one_run(settings: dict[str, Any]) -> dict[str, Any]:
    """A whole k-means over the store in ``settings["store"]``, in this process."""
    store, folder = FeatureStore(settings["store"]), Path(settings["folder"])
    config = ClusterConfig(**settings["config"])
    began = time.perf_counter()
    found = look(store, ALONE, silent)
    bad = found.bad(spherical=config.spherical, policy=config.bad)
    points = Points(store, ALONE.device, config.spherical, bad)
    said = settings.get("say") and (lambda text: print(text, file=sys.stderr, flush=True))
    made = make_centers(
        CenterJob(points, found.largest, config, ALONE, folder, "stamp", said or silent)
    )
    sizes = [row.get("empty") for row in made.rows]
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "iteration_s": [row["seconds"] for row in made.rows if "empty" in row],
        "objective": made.objective,
        "empty": sizes[-1],
        "repaired": [row["repaired"] for row in made.rows],
        "most_memory_mib": most_memory_mib(),
    }


def apart(store: Path, folder: Path, *, say: bool = False, **config: Any) -> dict[str, Any]:
    """``one_run`` in a process of its own, so that its memory is its own."""
    settings = {"store": str(store), "folder": str(folder), "config": config, "say": say}
    command = [sys.executable, __file__, "--one-run", json.dumps(settings)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def million(given: argparse.Namespace, folder: Path) -> str:
    store = folder / "store"
    make_store(store, 1_000_000, 1024, 20_000)
    found = apart(
        store, folder / "kmeans", say=True, clusters=20_000, iterations=given.iterations,
        memory_gib=given.memory_gib, spherical=given.spherical,
    )  # fmt: skip
    return line("kmeans million", samples=1_000_000, width=1024, clusters=20_000, **found)


def against_plan(folder: Path) -> str:
    machine = machine_of(PlanRequest(samples=1, gpus=1, gpu="cpu"))
    rows = []
    for samples, width, clusters in SIZES:
        store = folder / f"store-{samples}-{width}"
        make_store(store, samples, width, clusters)
        found = apart(store, folder / f"k-{clusters}", clusters=clusters, iterations=3)
        measured = float(np.median(found["iteration_s"][:-1]))
        problem = Problem(samples, width, clusters)
        flops = 2.0 * samples * width * clusters + samples * width
        plan = kmeans_plan(problem, machine, iterations=3)
        memory = sum(center_memory(problem, layout(problem, machine)).values())
        rows.append(
            {
                "samples": samples, "width": width, "clusters": clusters,
                "iteration_s": measured,
                "planned_s": round(plan.iteration.total_s, 3),
                "planned_over_measured": round(plan.iteration.total_s / measured, 3),
                "tflops": round(flops / measured / 1e12, 3),
                "most_memory_mib": found["most_memory_mib"],
                "planned_memory_mib": round(memory / 2**20),
            }
        )  # fmt: skip
    return line("kmeans plan", tflops=machine.tflops, memory_gbs=machine.memory_gbs, sizes=rows)


def in_cells(given: argparse.Namespace, folder: Path) -> str:
    store = folder / "store"
    make_store(store, given.samples, given.width, given.clusters)
    shape = {"clusters": given.clusters, "iterations": given.iterations}
    flat = apart(store, folder / "flat", **shape)
    cells = apart(store, folder / "cells", **shape, coarse=given.coarse)
    return line(
        "kmeans coarse",
        samples=given.samples, width=given.width, coarse=given.coarse, **shape,
        flat=flat, cells=cells,
        objective_worse_by=cells["objective"] / flat["objective"] - 1,
        times_as_fast=round(flat["seconds"] / cells["seconds"], 2),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--clusters", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--memory-gib", type=float, default=16.0)
    parser.add_argument("--spherical", action="store_true")
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--coarse", type=int, default=0)
    parser.add_argument("--one-run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one_run:
        print(json.dumps(one_run(json.loads(given.one_run))))
        return
    with tempfile.TemporaryDirectory() as folder:
        if given.million:
            print(million(given, Path(folder)))
        elif given.plan:
            print(against_plan(Path(folder)))
        elif given.coarse:
            print(in_cells(given, Path(folder)))
        else:
            print(against_faiss(given, Path(folder)))


if __name__ == "__main__":
    main()
