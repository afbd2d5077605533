"""Checkpoints of a part that holds one number."""

from pathlib import Path

import torch

from ovtrain.checkpoint import storage
from ovtrain.checkpoint.manager import Checkpoints
from ovtrain.checkpoint.state import Files
from ovtrain.checkpoint.tensor_files import read_tensors
from tests.helpers.training import world

FILE = "counter.safetensors"


class Counter:
    """A part with one number, in a tensor of ``entries``."""

    def __init__(self, entries: int = 2) -> None:
        self.tensor = torch.zeros(entries)

    @property
    def value(self) -> float:
        return self.tensor[0].item()

    def files(self) -> Files:
        return {FILE: {"v": self.tensor}}

    def load(self, folder: Path) -> None:
        self.tensor.copy_(read_tensors(folder / FILE)["v"])


def manager(folder: Path, part: Counter, **settings) -> Checkpoints:
    chosen = {"every": 5, "keep": 2} | settings
    return Checkpoints(folder, {"counter": part}, world(), **chosen)


def save(folder: Path, *steps: int, **settings) -> Path:
    part = Counter()
    checkpoints = manager(folder, part, **settings)
    for step in steps:
        part.tensor.fill_(step)
        checkpoints.save({"step": step})
    checkpoints.wait()
    return newest(folder)


def newest(folder: Path) -> Path:
    return folder / (folder / storage.LATEST).read_text().strip()


def resumed(folder: Path) -> tuple[int, float]:
    """The step, and the value, that a start finds."""
    part = Counter()
    state = manager(folder, part).resume()
    assert state is not None
    return state["step"], part.value


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))
