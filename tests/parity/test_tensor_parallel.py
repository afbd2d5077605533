"""Tensor and sequence parallelism change where numbers lie, not what they are.

Losses, norms and gradients over 20 steps are held to the plain single process in test_worlds.py,
resumptions in test_resume.py; here is what the ranks hold, save and read.
"""

from pathlib import Path

import pytest
import torch

from ovtrain.checkpoint.encoder_shards import PARTS, EncoderReader
from ovtrain.engine.build import build
from ovtrain.export.load import load_encoder
from ovtrain.export.run import export
from tests.helpers.training import typed_config, world
from tests.parity.conftest import TENSOR_2, TENSOR_4, UNEVEN, Runs
from tests.parity.gradients import WEIGHTS

NAMES = [*TENSOR_2, *TENSOR_4]


def test_tensor_ranks_draw_class_rows_of_their_own(runs: Runs):
    """Class shards span data and tensor ranks: four files of a head."""
    step = runs.out("tp2-zero2-4-sequence") / "checkpoints" / "step-00000018"
    assert len(list(step.glob("head-image-*"))) == 4


@pytest.mark.parametrize("part", PARTS)
def test_one_process_takes_over_every_bit(runs: Runs, part: str):
    """Weights and moments, saved by two tensor ranks x ZeRO-2 over two, read and saved by one."""
    saved = runs.out("tp2-zero2-4-sequence") / "checkpoints" / "step-00000018"
    parts = build(typed_config(runs.folder, **(UNEVEN | {"backend": "ddp"})), world())
    parts.checkpoints.parts["encoder"].load(saved)
    backend = parts.step.backend
    whole = EncoderReader(saved).whole(part, backend.shapes())
    held = {shard.name: shard.values for shard in backend.held() if shard.part == part}
    assert [n for n in whole if not torch.equal(whole[n].flatten(), held[n])] == []
    assert any(x.abs().max() > 0 for x in held.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_exported_encoder_is_the_one_that_the_ranks_trained(
    runs: Runs, tmp_path: Path, name: str
):
    """Gathered from the ranks after their last step, and read from what they saved then."""
    export(str(runs.out(name)), str(tmp_path / "exported"))
    exported = load_encoder(tmp_path / "exported").state_dict()
    trained = torch.load(runs.out(name) / WEIGHTS)
    assert exported.keys() == trained.keys()
    assert [n for n in trained if not torch.equal(exported[n], trained[n])] == []


def test_each_entry_of_the_encoder_is_saved_once(runs: Runs):
    found = [
        runs.out(name) / "checkpoints" / "step-00000018"
        for name in ("deepspeed-2", "tp2-zero2-4-sequence")
    ]
    sizes = [sum(p.stat().st_size for p in step.glob("encoder-*")) for step in found]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)  # names of pieces


def test_ranks_of_a_tensor_group_agree_on_samples_that_one_could_not_read(runs: Runs):
    for told in runs.collectives["agreement"]:
        assert told["tokens"] == [[1, 1, 4], [1]]
        assert told["labels"] == [2]
        assert told["source"] == [[1, 1, 1], [1]]
        assert told["bad"] == [
            ["a.tar/0", "timed out (0)"],
            ["a.tar/9", "timed out (0)"],  # each once, as the first rank tells it
            ["a.tar/1", "timed out (1)"],
        ]
        assert told["settled"]
