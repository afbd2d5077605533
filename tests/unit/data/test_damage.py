"""Damaged samples cost themselves and nothing else: each is used or named, once, for a reason."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import ovtrain.data.loader as loader_module
from data_pipelines.shards.writer import write_source
from ovtrain.config.train import TrainConfig
from ovtrain.data.faults import CATEGORIES
from ovtrain.data.loader import Loader
from ovtrain.data.pool import SamplePool
from ovtrain.data.shards import ShardReader
from ovtrain.schema.isolated import category
from tests.helpers.damage import DAMAGES, FRAMES, HARMFUL, SIZE, Damage, payloads
from tests.helpers.harmful import HarmedByPayload
from tests.helpers.shards import geometry, write_labels
from tests.helpers.training import typed_config, world

UNDAMAGED: Mapping[str, Damage] = {
    "undamaged": Damage(lambda p, _: p, frozenset(), good=True),
}


@dataclass(frozen=True)
class Outcome:
    """Sample name -> reason ("" for a good one), in the order of each source."""

    video: list[tuple[str, str]]
    image: list[tuple[str, str]]

    def of(self, kind: str) -> list[tuple[str, str]]:
        return self.video if kind == "video" else self.image


def write(folder: Path, plans: Mapping[str, Mapping[str, Damage]], samples: int) -> None:
    """``samples`` of each kind; the kinds of damage take turns, except that each harm to a worker
    is done once; key ``NAME-NUMBER``."""
    for kind, damages in plans.items():
        once = [name for name in damages if name in HARMFUL[kind]]
        names = [name for name in damages if name not in once] or ["undamaged"]
        turns = [*once, *(names[n % len(names)] for n in range(samples - len(once)))]
        like = geometry(kind, FRAMES if kind == "video" else 1, SIZE)
        damaged = (
            (f"{name}-{number:04d}", damages[name].change(payloads(kind, number), rng))
            for number, name in enumerate(turns)
            for rng in [np.random.default_rng([number, *name.encode()])]
        )
        manifest = write_source(folder / kind, like, damaged, 50)
        write_labels(folder / f"{kind}-labels", manifest, ShardReader(folder / kind).keys, 10)


def config_of(folder: Path, *overrides: str, batch: int = 20) -> TrainConfig:
    views = "data.views={codec: 1, frames: 0, tiling: 0}"
    return typed_config(folder, views, "data.max_bad_in_a_row=1000", *overrides, global_batch=batch)


def one_epoch(config: TrainConfig) -> Outcome:
    """Every sample of both sources, which are equally many."""
    loader = Loader(config, world())
    found: dict[str, list[tuple[str, str]]] = {"video": [], "image": []}
    names = [
        {int(h): source.reader.name(i) for i, h in enumerate(source.hashes.view(np.int64))}
        for source in loader.sources
    ]
    try:
        for _ in range(2 * len(loader.sources[0].reader) // config.run.global_batch):
            batch = next(loader)
            bad = iter(batch.bad)
            for micro in batch.micro:
                for number, key in zip(micro.source.tolist(), micro.key.tolist(), strict=True):
                    kind = ("video", "image")[number]
                    if key:
                        found[kind].append((names[number][key], ""))
                        continue
                    one = next(bad)
                    assert one.source == kind
                    found[kind].append((one.name, one.reason))
            assert not list(bad)
    finally:
        loader.close()
    return Outcome(**found)


def check(folder: Path, plans: Mapping[str, Mapping[str, Damage]], outcome: Outcome) -> None:
    """Nothing lost, nothing twice, in the asked order; each with a reason that it may have."""
    loader = Loader(config_of(folder, "data.workers=0"), world())
    loader.close()
    wrong: list[str] = []
    for source in loader.sources:
        kind = source.config.name
        order = [source.name(g) for g in range(len(source.reader))]
        assert [name for name, _ in outcome.of(kind)] == order
        for name, reason in outcome.of(kind):
            damage = plans[kind][name.split("/")[1].rsplit("-", 1)[0]]
            fits = category(reason) in damage.named if reason else damage.good
            wrong += [] if fits else [f"{kind} {name}: {reason or 'used'}"]
    assert not wrong, "\n".join(wrong)


def left_behind() -> tuple[set[str], Counter[str]]:
    """Children and open files of this process."""
    gc.collect()
    me = f"/proc/{os.getpid()}"
    children = {
        child
        for task in os.listdir(f"{me}/task")
        for child in Path(f"{me}/task/{task}/children").read_text().split()
    }
    return children, open_files()


def open_files() -> Counter[str]:
    """What this process has open, and how often."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the folder's own
            found[os.readlink(f"/proc/self/fd/{name}").split("[")[0]] += 1
    return found


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_damage_is_survived_and_named(tmp_path: Path, workers: int):
    most = max(map(len, DAMAGES.values()))
    plans = {kind: {**UNDAMAGED, **damages} for kind, damages in DAMAGES.items()}
    write(tmp_path, plans, most + 1 + (most + 1) % 2)
    shared = set(os.listdir("/dev/shm"))
    before = left_behind()
    outcome = one_epoch(config_of(tmp_path, f"data.workers={workers}", batch=4))
    assert left_behind() == before
    assert set(os.listdir("/dev/shm")) <= shared
    check(tmp_path, plans, outcome)


def run_harmful(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Outcome:
    monkeypatch.setattr(loader_module, "SamplePool", lambda d: SamplePool(d, HarmedByPayload(d)))
    limits = ("data.sample_timeout_s=3.0", "data.worker_memory_mib=300", "data.workers=2")
    return one_epoch(config_of(folder, *limits, *overrides, batch=4))


@pytest.mark.full
def test_a_thousand_damaged_samples_leave_nothing_behind(tmp_path: Path, monkeypatch):
    plans = {kind: {**UNDAMAGED, **DAMAGES[kind], **HARMFUL[kind]} for kind in ("video", "image")}
    write(tmp_path, plans, 500)
    before, resident = left_behind(), resident_mib()
    outcome = run_harmful(tmp_path, monkeypatch)
    assert left_behind() == before
    assert resident_mib() < resident + 100
    check(tmp_path, plans, outcome)


@pytest.mark.full
def test_loading_on_and_on_holds_no_more_memory(tmp_path: Path, caplog):
    """Of Python's own: what the allocator keeps is for benchmarks/loader_soak.py, which takes
    minutes."""
    write(tmp_path, {kind: {**UNDAMAGED, **DAMAGES[kind]} for kind in DAMAGES}, 60)
    caplog.set_level("CRITICAL", "ovtrain.data.loader")  # pytest keeps every line
    loader = Loader(config_of(tmp_path, "data.workers=2"), world())
    tracemalloc.start()
    held: list[int] = []
    try:
        for _ in range(3):
            for _ in range(60):
                next(loader)
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        loader.close()
    assert held[2] - held[1] < 200_000  # of batches under way; 1,200 samples were loaded between


def test_every_reason_has_a_category_that_runs_count():
    named = {
        name
        for plans in (DAMAGES, HARMFUL)
        for damages in plans.values()
        for damage in damages.values()
        for name in damage.named
    }
    assert named <= set(CATEGORIES)
