"""One bad sample on one rank of two, under every backend: nothing is updated, its name is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.training import write_config
from tests.helpers.world import succeed, torchrun

BACKENDS: dict[str, dict[str, Any]] = {
    "ddp": {"backend": "ddp"},
    "zero1": {"zero_stage": 1},
    "bf16": {"zero_stage": 1, "precision": "bf16"},
    "zero2": {"zero_stage": 2, "micro_batch": 2},
    "zero3": {"zero_stage": 3},
}
TENSOR: dict[str, dict[str, Any]] = {
    "tensor": {"zero_stage": 1, "tensor_parallel": 2, "sequence_parallel": False},
    "sequence": {"backend": "ddp", "tensor_parallel": 2},
}
"""Two tensor ranks of one data rank: they read the same samples."""
PLACES = ("embedding", "layer_gradient")
NO_SAMPLE = "parameter_gradient"
SKIPPING = "embedding-zero2-skip"


@pytest.fixture(scope="module")
def found(setup_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("guards")
    shutil.copytree(setup_folder, folder, dirs_exist_ok=True)
    settings = {"steps": 4, "log_every": 5, "checkpoint_every": 100}
    paths = [
        write_config(folder, f"{place}-{name}", **settings, **run)
        for name, run in BACKENDS.items()
        for place in (*PLACES, NO_SAMPLE)
    ]
    paths += [
        write_config(folder, f"{place}-{name}", **settings, **run)
        for name, run in TENSOR.items()
        for place in (PLACES[0], NO_SAMPLE)
    ]
    skip = {"guards": {"on_nonfinite": "skip"}}
    paths.insert(-7, write_config(folder, SKIPPING, zero_stage=2, **settings, **skip))
    out = folder / "found.json"
    succeed(torchrun(2, "-m", "tests.parity.guard_job", str(out), *paths))
    return json.loads(out.read_text())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", PLACES)
def test_the_run_stops_before_the_update_and_names_rank_source_and_sample(
    found: dict[str, Any], place: str, backend: str
):
    ranks = found[f"{place}-{backend}"]
    for rank in ranks:
        assert "step 3: 1 samples" in rank["error"]
        assert f"rank 1, {ranks[1]['name']}" in rank["error"]
        assert "stopped before the update" in rank["error"]
        assert rank["changed"] == []
        assert rank["changed_at_the_end"] == 0
        assert rank["moved_before"] > 0
        assert rank["finite"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_of_no_sample_stops_it_too(found: dict[str, Any], backend: str):
    for rank in found[f"{NO_SAMPLE}-{backend}"]:
        assert "step 3: not finite: the encoder" in rank["error"]
        assert rank["changed"] == []
        assert rank["changed_at_the_end"] == 0
        assert rank["finite"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_step_waited_for_a_device(found: dict[str, Any], backend: str):
    """Outside the encoder's own passes; DeepSpeed's update is among what was watched."""
    for rank in found[f"embedding-{backend}"]:
        assert rank["launches"] > 100
        assert rank["waits"] == []


def test_the_step_is_left_out_on_all_ranks_and_training_goes_on(found: dict[str, Any]):
    for rank in found[SKIPPING]:
        assert rank["error"] == ""
        assert rank["changed"] == []
        assert rank["changed_at_the_end"] > 0
        assert rank["finite"]


@pytest.mark.parametrize("layout", TENSOR)
def test_what_one_tensor_rank_alone_meets_stops_both(found: dict[str, Any], layout: str):
    ranks = found[f"embedding-{layout}"]
    for rank in ranks:
        assert "step 3: 1 samples" in rank["error"]  # named once
        assert ranks[1]["name"] in rank["error"]
    for rank in [*ranks, *found[f"{NO_SAMPLE}-{layout}"]]:
        assert "stopped before the update" in rank["error"]
        assert rank["changed"] == []
        assert rank["changed_at_the_end"] == 0
        assert rank["moved_before"] > 0
        assert rank["finite"]


@pytest.mark.parametrize("layout", TENSOR)
def test_a_gradient_that_one_tensor_rank_alone_got_wrong_stops_both(
    found: dict[str, Any], layout: str
):
    """Of a parameter that both hold whole: no sum over tensor ranks spreads it."""
    for rank in found[f"{NO_SAMPLE}-{layout}"]:
        assert "step 3: not finite: the encoder" in rank["error"]
