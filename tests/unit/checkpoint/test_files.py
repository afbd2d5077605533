"""Tensor files, and the encoder in pieces: to the bit, from any number of ranks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ovtrain.checkpoint import storage
from ovtrain.checkpoint.encoder_shards import STEPS, EncoderReader, Shard, cut, file_name
from ovtrain.checkpoint.restore import restore_encoder
from ovtrain.checkpoint.tensor_files import TensorFile, read_tensors, write_tensors
from ovtrain.config.model import ModelConfig
from ovtrain.models.encoder import build_encoder
from ovtrain.schema.errors import CheckpointError
from tests.helpers.training import world


def test_tensor_files_are_safetensors_and_read_by_parts(tmp_path: Path):
    tensors = {
        "a": torch.arange(12.0).view(3, 4),
        "b": torch.arange(5, dtype=torch.int64),
        "c": torch.randn(7).bfloat16(),
        "empty": torch.empty(0, 4),
        "strided": torch.arange(12.0).view(3, 4).t(),
    }
    path = tmp_path / "t.safetensors"
    entry = write_tensors(path, tensors)
    assert entry["bytes"] == path.stat().st_size
    assert storage.faults(tmp_path, {"t.safetensors": entry}) == []
    for name, tensor in load_file(str(path)).items():
        assert torch.equal(tensor, tensors[name]), name
    file = TensorFile(path)
    assert file.lengths == {"a": 3, "b": 5, "c": 7, "empty": 0, "strided": 4}
    assert torch.equal(file.read("a", 1, 3), tensors["a"][1:3])


def test_damaged_files_are_typed_errors(tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    for read in (read_tensors, TensorFile):
        with pytest.raises(CheckpointError, match=r"a\.safetensors: unreadable"):
            read(tmp_path / "a.safetensors")
    (tmp_path / storage.STATE).write_text(json.dumps({})[:1])
    with pytest.raises(CheckpointError, match=r"state\.json: unreadable"):
        storage.read_state(tmp_path)


def write_encoder(folder: Path, named: dict[str, torch.Tensor], ranks: int) -> None:
    """As ``ranks`` ranks with even parts write it, moments being the parameters' negatives."""
    shards = [
        Shard(part, name, 0, (sign * tensor).flatten())
        for part, sign in (("param", 1), ("first", -1), ("second", -1))
        for name, tensor in named.items()
    ]
    total = sum(len(shard.values) for shard in shards)
    for rank in range(ranks):
        own = cut(shards, world(rank, ranks).slice_of(total), total)
        steps = {STEPS: torch.tensor([9.0])} if rank == 0 else {}
        write_tensors(
            folder / file_name(rank, ranks), {shard.key: shard.values for shard in own} | steps
        )


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_an_encoder_comes_back_from_any_number_of_ranks(tmp_path: Path, ranks: int):
    encoder = build_encoder(ModelConfig(preset="tiny"), seed=1)
    write_encoder(tmp_path, encoder.state_dict(), ranks)
    other = build_encoder(ModelConfig(preset="tiny"), seed=2)
    restore_encoder(other, tmp_path)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    reader, name = EncoderReader(tmp_path), "layers.0.mlp.fc1.weight"
    assert reader.steps == 9
    whole = encoder.state_dict()[name]
    read = reader.read_piece("first", name, whole.shape, None, 100, 4000)
    assert torch.equal(read, -whole.flatten()[100:4000])
    with pytest.raises(CheckpointError, match=r"holds another encoder .*model.preset"):
        restore_encoder(build_encoder(ModelConfig(preset="small"), seed=0), tmp_path)


def test_a_lost_rank_file_is_no_smaller_encoder(tmp_path: Path):
    encoder = build_encoder(ModelConfig(preset="tiny"), seed=1)
    write_encoder(tmp_path, encoder.state_dict(), 4)
    (tmp_path / file_name(0, 4)).unlink()
    with pytest.raises(CheckpointError, match=r"another encoder|are not whole"):
        restore_encoder(encoder, tmp_path)
    with pytest.raises(CheckpointError, match="no count of the encoder's updates"):
        _ = EncoderReader(tmp_path).steps
