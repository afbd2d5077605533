"""Workers that make samples: what a file does to a decoder costs its sample, whoever runs it."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest

import ovtrain.data.loader as loader_module
from ovtrain.data.loader import Loader
from ovtrain.data.making import Made
from ovtrain.data.pool import SamplePool
from ovtrain.schema.isolated import Failure
from tests.helpers.harmful import Harmful
from tests.helpers.training import typed_config, world
from tests.unit.data.test_loader import read


def test_a_crash_a_hang_and_a_swollen_decoder_cost_their_samples(setup_folder, monkeypatch):
    limits = {"sample_timeout_s": 1.0, "worker_memory_mib": 900, "prefetch": 1}
    config = typed_config(setup_folder, global_batch=8)
    config = replace(config, data=replace(config.data, workers=2, **limits))
    monkeypatch.setattr(loader_module, "SamplePool", lambda d: SamplePool(d, Harmful(d)))
    loader = Loader(config, world())
    batches = [next(loader) for _ in range(6)]  # one epoch of each source
    found = {f"{b.source} {b.name[-4:]}": b.reason for batch in batches for b in batch.bad}
    loader.close()
    wanted = {
        "0001": "worker process died (exit code -11)",
        "0002": "timed out (more than 1 s)",
        "0003": "out of memory (more than 900 MiB)",
    }
    assert found == {f"{s} {n}": r for s in ("video", "image") for n, r in wanted.items()}
    assert all(batch.micro[0].samples == 8 for batch in batches)


def test_closing_does_not_wait_for_a_decoder_that_hangs(setup_folder):
    data = replace(typed_config(setup_folder).data, workers=1)
    loader = Loader(typed_config(setup_folder), world())
    task = replace(loader.sources[0].task(0), where="x-000000.tar#2")
    loader.close()
    pool = SamplePool(data, Harmful(data))
    (result,) = pool.submit([task])
    while not pool._children or not pool._children[0].resident_mib():
        time.sleep(0.01)
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 10
    assert isinstance(result(), Failure)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (3, 1), (4, 4)])
def test_a_stream_goes_on_exactly_with_other_ranks_and_workers(setup_folder, ranks, workers):
    config = typed_config(setup_folder, global_batch=7)
    straight = read(config, 7)[0]
    _, state = read(replace(config, data=replace(config.data, workers=2)), 3, ranks=2)
    other = replace(config, data=replace(config.data, workers=workers))
    assert read(other, 4, ranks=ranks, state=state)[0] == straight[3:]


def test_workers_are_replaced_before_they_grow_old(setup_folder, monkeypatch):
    monkeypatch.setattr("ovtrain.data.pool.LIFETIME", 3)
    loader = Loader(typed_config(setup_folder, "data.workers=1"), world())
    tasks = [loader.sources[0].task(g) for g in range(7)]
    pool = SamplePool(loader.config.data)
    made = [wait() for wait in pool.submit(tasks)]
    assert all(isinstance(one, Made) for one in made)
    assert [child.starts for child in pool._children] == [3]
    pool.close()
    loader.close()


def test_workers_need_no_torch():
    code = "import ovtrain.data.making, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_seconds_are_told_apart_by_stage(setup_folder):
    loader = Loader(typed_config(setup_folder), world())
    batch = next(loader)
    loader.close()
    assert set(batch.seconds) == {"read", "decode", "signals", "crop", "pack"}
    assert all(value > 0 for value in batch.seconds.values())
