"""What a batch asks of the encoder, counted on the host: samples, tokens, model FLOPs."""

from __future__ import annotations

from dataclasses import dataclass

from ovtrain.config.model import ModelConfig
from ovtrain.costs.encoder import training_flops
from ovtrain.data.batch import PackedBatch
from ovtrain.models.packing import attended_pairs
from ovtrain.ops.varlen_attention import Sequences


@dataclass(frozen=True)
class Work:
    samples: int
    tokens: int
    flops: float


def work_of(batch: PackedBatch, model: ModelConfig) -> Work:
    """Of one micro-step of this rank. Placeholders of unreadable samples are no samples; pairs of
    tokens that groups or windows keep apart are no FLOPs."""
    lengths = batch.cu_seqlens.diff().tolist()
    pairs = attended_pairs(
        Sequences(batch.cu_seqlens, batch.max_seqlen),
        batch.group_id,
        batch.positions[:, 0],
        model.window_frames,
        len(model.window_layers) / model.size.depth,
    ).tolist()
    flops = (
        training_flops(model.size, n, model.patch, p) for n, p in zip(lengths, pairs, strict=True)
    )
    return Work(int((batch.key != 0).sum()), sum(lengths), sum(flops))
