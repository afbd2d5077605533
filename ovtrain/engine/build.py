"""Config -> parts. The trainer receives them; nothing else constructs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ovtrain.checkpoint import storage
from ovtrain.checkpoint.manager import Checkpoints
from ovtrain.checkpoint.restore import checkpoint_folder, restore_encoder
from ovtrain.checkpoint.state import EncoderPart, HeadPart, Part
from ovtrain.config.layout import check_layout
from ovtrain.config.model import ModelConfig
from ovtrain.config.train import TrainConfig
from ovtrain.data.loader import Loader, StepBatch
from ovtrain.data.samples import Source
from ovtrain.distributed.context import World, seed_for
from ovtrain.distributed.mesh import Mesh, make_mesh
from ovtrain.distributed.parallelize import Division, divide, undivided
from ovtrain.distributed.tensor_parallel import TensorRanks
from ovtrain.engine.agreement import agreed
from ovtrain.engine.backend import Backend, PlainBackend
from ovtrain.engine.step import SourceHead, TrainStep
from ovtrain.export.load import check_meaning, fill_encoder, is_public
from ovtrain.heads.class_sharded import ClassShardedHead
from ovtrain.models.encoder import Encoder, build_encoder
from ovtrain.optim.sparse_rows import SparseRows
from ovtrain.schema.errors import ConfigError


@dataclass(frozen=True)
class Parts:
    mesh: Mesh
    encoder: Encoder
    loader: Loader
    heads: list[SourceHead]
    step: TrainStep
    checkpoints: Checkpoints

    def next_batch(self) -> StepBatch:
        """Collective: the next step's samples. Raises TooManyBad."""
        batch = next(self.loader)
        return agreed(batch, self.loader.sources[0].placeholder(), self.mesh.tensor)


def build(config: TrainConfig, world: World) -> Parts:
    """Everything a run is made of. Collective. Raises the typed errors of its inputs."""
    check_layout(config, world.size, {})
    mesh = make_mesh(world, config.run.tensor_parallel)
    loader = Loader(config, mesh.data)
    classes = {s.config.name: s.classes for s in loader.sources if s.labels is not None}
    check_layout(config, world.size, classes)
    encoder = build_encoder(config.model, seed_for(config.run.seed, "encoder"))
    if config.run.init_from:
        start_from(encoder, config.run.init_from)
    division = divided(encoder, config, mesh)
    encoder.to(world.device)
    if config.model.compile:
        encoder.compile_layers()
    backend = _backend(config, encoder, division, mesh, loader.plan.micro_steps)
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
    step = TrainStep(config, encoder, backend, heads, mesh, loader.name_of)
    return Parts(mesh, encoder, loader, heads, step, checkpoints)


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


def divided(encoder: Encoder, config: TrainConfig, mesh: Mesh) -> Division:
    """Leave this rank its part of the encoder, in place."""
    if mesh.tensor.size == 1:
        return undivided(encoder)
    ranks = TensorRanks(mesh.tensor, config.run.sequence_parallel)
    encoder.set_seams(ranks.split, ranks.enter, ranks.copy, ranks.whole)
    return divide(encoder, encoder.tensor_plan(), ranks)


def _backend(
    config: TrainConfig, encoder: Encoder, division: Division, mesh: Mesh, micro_steps: int
) -> Backend:
    if config.run.backend == "ddp":
        half = config.run.precision == "bf16"
        return PlainBackend(encoder, division, config.optim, mesh, bf16=half)
    from ovtrain.engine.deepspeed_backend import DeepSpeedBackend

    return DeepSpeedBackend(encoder, division, config.run, config.optim, mesh, micro_steps)


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
