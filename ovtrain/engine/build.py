"""Config -> parts. The trainer receives them; nothing else constructs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ovtrain.checkpoint import storage
from ovtrain.checkpoint.manager import Checkpoints
from ovtrain.checkpoint.restore import checkpoint_folder, restore_encoder
from ovtrain.checkpoint.state import EncoderPart, HeadPart, Part
from ovtrain.config.model import ModelConfig
from ovtrain.config.train import TrainConfig
from ovtrain.data.loader import Loader
from ovtrain.data.samples import Source
from ovtrain.distributed.context import World, seed_for
from ovtrain.engine.backend import Backend, PlainBackend
from ovtrain.engine.step import SourceHead, TrainStep
from ovtrain.export.load import check_meaning, fill_encoder, is_public
from ovtrain.heads.class_sharded import ClassShardedHead
from ovtrain.models.encoder import Encoder, build_encoder
from ovtrain.optim.sparse_rows import SparseRows
from ovtrain.schema.errors import ConfigError


@dataclass(frozen=True)
class Parts:
    encoder: Encoder
    loader: Loader
    heads: list[SourceHead]
    step: TrainStep
    checkpoints: Checkpoints


def build(config: TrainConfig, world: World) -> Parts:
    """Everything a run is made of. Raises the typed errors of its inputs."""
    loader = Loader(config, world)
    encoder = build_encoder(config.model, seed_for(config.run.seed, "encoder"))
    if config.run.init_from:
        start_from(encoder, config.run.init_from)
    encoder.to(world.device)
    if config.model.compile:
        encoder.compile_layers()
    backend = _backend(config, encoder, world, loader.plan.micro_steps)
    heads = _heads(config, loader, encoder.width, world)
    if not heads:
        raise ConfigError("data.sources", "no source has labels", fix="name a LabelStore folder")
    parts: dict[str, Part] = {"encoder": EncoderPart(backend, world)}
    parts |= {f"head-{h.head.source}": HeadPart(h.head, h.optimizer) for h in heads}
    checkpoints = Checkpoints(
        Path(config.run.out) / "checkpoints",
        parts,
        world,
        every=config.run.checkpoint_every,
        keep=config.run.keep,
        keep_every=config.run.keep_every,
        background=config.run.background_saves,
    )
    step = TrainStep(config, encoder, backend, heads, world, loader.name_of)
    return Parts(encoder, loader, heads, step, checkpoints)


def start_from(encoder: Encoder, folder: str) -> None:
    """Fill an encoder from a run, a checkpoint of one, or a directory in the public format. Raises
    CheckpointError."""
    if is_public(folder):
        fill_encoder(encoder, folder)
    else:
        step = checkpoint_folder(folder)
        saved = ModelConfig(**storage.read_state(step)["config"]["model"])
        check_meaning(saved, encoder.config, str(step))
        restore_encoder(encoder, step)


def _backend(config: TrainConfig, encoder: Encoder, world: World, micro_steps: int) -> Backend:
    if config.run.backend == "ddp":
        return PlainBackend(encoder, config.optim, world, bf16=config.run.precision == "bf16")
    from ovtrain.engine.deepspeed_backend import DeepSpeedBackend

    return DeepSpeedBackend(encoder, config.run, config.optim, world, micro_steps)


def _heads(config: TrainConfig, loader: Loader, width: int, world: World) -> list[SourceHead]:
    return [
        _source_head(config, source, width, world)
        for source in loader.sources
        if source.labels is not None
    ]


def _source_head(config: TrainConfig, source: Source, width: int, world: World) -> SourceHead:
    assert source.labels is not None
    name, weight = source.config.name, source.config.weight
    head = ClassShardedHead(
        name,
        source.classes,
        width,
        config.head_of(name),
        world,
        config.run.seed,
        bf16=config.run.precision == "bf16",
        centroids=source.config.centroids,
    )
    optimizer = SparseRows(head.rows, head.config, config.optim, first_row=head.lo, seed=head.seed)
    longest = int((source.labels.offsets[1:] - source.labels.offsets[:-1]).max())
    return SourceHead(source.number, weight, head, optimizer, max(longest, 1))
