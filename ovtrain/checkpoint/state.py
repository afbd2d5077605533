"""The two planes as checkpoint parts: the encoder by name, head rows by class range."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from ovtrain.checkpoint import storage
from ovtrain.distributed.context import World
from ovtrain.heads.class_sharded import ClassShardedHead
from ovtrain.heads.reshard import file_name, read_rows
from ovtrain.schema.errors import CheckpointError

EncoderTensors = dict[str, dict[str, Tensor]]
"""{"param" | "first" | "second": {name: unsharded float32 tensor}, "steps": {"all": ()}}."""


class EncoderOwner(Protocol):
    """A backend: gives and takes the encoder and its optimizer state unsharded, by name."""

    def export_state(self) -> EncoderTensors: ...

    def import_state(self, state: EncoderTensors) -> None: ...


class RowOwner(Protocol):
    """A head's optimizer: gives and takes tensors aligned with its rows, the rows included."""

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: dict[str, Tensor]) -> None: ...


class EncoderPart:
    def __init__(self, owner: EncoderOwner) -> None:
        self.owner = owner

    def save(self, folder: Path, world: World) -> None:
        state = self.owner.export_state()  # on every rank: ZeRO gathers
        if world.is_main:
            flat = {f"{part}/{n}": t for part, named in state.items() for n, t in named.items()}
            storage.write_tensors(folder / storage.ENCODER, flat)

    def load(self, folder: Path) -> None:
        state: EncoderTensors = {}
        for key, tensor in storage.read_tensors(folder / storage.ENCODER).items():
            part, name = key.split("/", 1)
            state.setdefault(part, {})[name] = tensor
        self.owner.import_state(state)


class HeadPart:
    def __init__(self, head: ClassShardedHead, optimizer: RowOwner) -> None:
        self.head, self.optimizer = head, optimizer

    def save(self, folder: Path, world: World) -> None:
        head = self.head
        if head.hi > head.lo:
            path = folder / file_name(head.source, head.lo, head.hi)
            storage.write_tensors(path, self.optimizer.state())

    def load(self, folder: Path) -> None:
        head = self.head
        saved = storage.read_state(folder)["classes"].get(head.source)
        if saved != head.classes:
            raise CheckpointError(
                str(folder),
                f"head {head.source} has {saved} classes",
                allowed=f"{head.classes}, as its labels have",
                fix="resume with the labels the run began with, or start a new run.out",
            )
        if head.hi > head.lo:
            rows = read_rows(folder, head.source, head.lo, head.hi)
            self.optimizer.load(rows)
