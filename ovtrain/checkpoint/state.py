"""The two planes as checkpoint parts: the encoder by parameter name, head rows by class range."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ovtrain.checkpoint import encoder_shards, storage
from ovtrain.checkpoint.encoder_shards import STEPS, EncoderReader, Shard
from ovtrain.distributed.context import World
from ovtrain.heads.class_sharded import ClassShardedHead
from ovtrain.heads.reshard import file_name, read_rows
from ovtrain.schema.errors import CheckpointError

Files = dict[str, dict[str, Tensor]]
"""{file name: {key: tensor}} that one rank writes; the tensors are live."""


class Part(Protocol):
    """Something with state."""

    def files(self) -> Files:
        """What this rank writes, no collective needed. Names are the same at every save."""
        ...

    def load(self, folder: Path) -> None:
        """Take this rank's state from a step directory of any layout of ranks."""
        ...


class EncoderOwner(Protocol):
    """A backend: where the encoder and its optimizer's state lie on this rank."""

    def shapes(self) -> Mapping[str, torch.Size]:
        """Of all parameters, whole, also where tensor ranks divide them."""
        ...

    def held(self) -> list[Shard]:
        """All that lies on this rank."""
        ...

    def owned(self) -> list[Shard]:
        """What this rank saves: over all ranks each entry once."""
        ...

    def steps(self) -> list[Tensor]:
        """The optimizer's counters of updates, (), all equal."""
        ...

    def restored(self) -> None:
        """Collective: ``held`` and ``steps`` were overwritten."""
        ...


class RowOwner(Protocol):
    """A head's optimizer: gives and takes tensors aligned with its rows, the rows included."""

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: dict[str, Tensor]) -> None: ...


class EncoderPart:
    def __init__(self, owner: EncoderOwner, world: World) -> None:
        self.owner, self.world = owner, world

    def files(self) -> Files:
        tensors = {shard.key: shard.values for shard in self.owner.owned()}
        if self.world.is_main:
            tensors[STEPS] = self.owner.steps()[0].detach().float().reshape(1)
        name = encoder_shards.file_name(self.world.rank, self.world.size)
        return {name: tensors} if tensors else {}

    def load(self, folder: Path) -> None:
        reader = EncoderReader(folder)
        shapes = self.owner.shapes()
        reader.check(shapes)
        with torch.no_grad():
            for shard in self.owner.held():
                stop = shard.start + len(shard.values)
                shape = shapes[shard.name]
                read = reader.read_piece(
                    shard.part, shard.name, shape, shard.piece, shard.start, stop
                )
                shard.values.copy_(read)
            for counter in self.owner.steps():
                counter.fill_(reader.steps)
        self.owner.restored()


class HeadPart:
    def __init__(self, head: ClassShardedHead, optimizer: RowOwner) -> None:
        self.head, self.optimizer = head, optimizer

    def files(self) -> Files:
        head = self.head
        if head.hi == head.lo:
            return {}
        return {file_name(head.source, head.lo, head.hi): self.optimizer.state()}

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
