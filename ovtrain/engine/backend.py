"""Backend: who owns the replicated plane (encoder, pooling), its gradients and its optimizer.

Gradient contract: ``backward`` takes a scalar whose gradients, *summed* over ranks and micro-steps,
are those of the step's global-mean loss. A backend whose machinery averages undoes that itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from ovtrain.checkpoint.encoder_shards import Shard, cut, whole_shards
from ovtrain.checkpoint.state import EncoderOwner
from ovtrain.config.optim import OptimConfig
from ovtrain.costs.buckets import PLAIN_BUCKET
from ovtrain.data.batch import PackedBatch
from ovtrain.distributed.buckets import GradientBuckets
from ovtrain.distributed.collectives import all_reduce
from ovtrain.distributed.context import World
from ovtrain.distributed.grad_norm import clip_factor, joint_norm
from ovtrain.distributed.mesh import Mesh
from ovtrain.distributed.parallelize import Division
from ovtrain.engine.gate import UpdateGate
from ovtrain.models.encoder import Encoder
from ovtrain.optim.param_groups import param_groups


class Backend(EncoderOwner, Protocol):
    @property
    def runs_ahead(self) -> bool:
        """Whether the next micro-step's ``forward`` may come before this one's ``backward``."""
        ...

    def forward(self, batch: PackedBatch) -> Tensor:
        """Pooled embeddings (B, D)."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradients of one micro-step; ``last`` marks the step's last one."""
        ...

    def step(self, lr: float, sharded_squares: Tensor, gate: UpdateGate) -> Tensor:
        """Clip by the norm over both planes, update where ``gate`` lets it, clear. Returns that
        norm ()."""
        ...


def encode(model: torch.nn.Module, batch: PackedBatch) -> Tensor:
    """Pooled embeddings (B, D) of a batch by an encoder (or a wrapper of one)."""
    given = (batch.patches, batch.positions, batch.cu_seqlens, batch.max_seqlen, batch.group_id)
    return model(*given, pooled_only=True)[1]


def adamw(encoder: Encoder, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW of an encoder in one kernel, which can leave a step out on the device's own word
    (``found_inf``)."""
    groups = param_groups(encoder, optim.weight_decay)
    betas = (optim.beta1, optim.beta2)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps, fused=True)


def create_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """AdamW makes its state in the first update; a checkpoint may need it before."""
    held = optimizer.state[parameter]
    held["step"] = torch.zeros((), device=parameter.device)
    held["exp_avg"] = torch.zeros_like(parameter)
    held["exp_avg_sq"] = torch.zeros_like(parameter)


class PlainBackend:
    """Plain data parallelism, the reference: all parameters on each data rank, gradients summed
    once per step, beside its last backward pass. bf16 runs under autocast, with float32
    parameters."""

    def __init__(
        self,
        encoder: Encoder,
        division: Division,
        optim: OptimConfig,
        mesh: Mesh,
        *,
        bf16: bool = False,
        bucket: int = PLAIN_BUCKET,
    ) -> None:
        self.encoder, self.division, self.mesh = encoder, division, mesh
        self.clip, self.bf16 = optim.clip, bf16
        self.runs_ahead = True
        self.optimizer = adamw(encoder, optim)
        for parameter in encoder.parameters():
            create_state(self.optimizer, parameter)
        group = mesh.data.group
        parameters = list(encoder.parameters())
        self._buckets = GradientBuckets(parameters, group, bucket) if group else None

    def forward(self, batch: PackedBatch) -> Tensor:
        with self._precision():
            return encode(self.encoder, batch)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.mesh.world.device.type, torch.bfloat16, enabled=self.bf16)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        if last and self._buckets is not None:
            self._buckets.arm()
        loss.backward()

    def step(self, lr: float, sharded_squares: Tensor, gate: UpdateGate) -> Tensor:
        if self._buckets is not None:
            self._buckets.wait()
        gradients = [p.grad for p in self.encoder.parameters() if p.grad is not None]
        norm = joint_norm(self._squares().sqrt(), sharded_squares)
        self.optimizer.found_inf = gate.judge(norm)  # type: ignore[attr-defined]
        factor = clip_factor(norm, self.clip)
        for gradient in gradients:
            gradient.mul_(factor)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _squares(self) -> Tensor:
        """() of all gradients, those of divided parameters from all tensor ranks."""
        named = [(n, p.grad) for n, p in self.encoder.named_parameters() if p.grad is not None]
        parts = self.division.parts
        squares = {n: g.float().square().sum() for n, g in named}
        if not parts:
            return torch.stack(list(squares.values())).sum()
        own = torch.stack([x for n, x in squares.items() if n in parts]).sum()
        whole = torch.stack([x for n, x in squares.items() if n not in parts]).sum()
        return all_reduce(own, self.mesh.tensor.group) + whole

    def shapes(self) -> Mapping[str, torch.Size]:
        return self.division.shapes

    def held(self) -> list[Shard]:
        state, named = self.optimizer.state, dict(self.encoder.named_parameters())
        firsts = {name: state[p]["exp_avg"] for name, p in named.items()}
        seconds = {name: state[p]["exp_avg_sq"] for name, p in named.items()}
        parts = {"param": named, "first": firsts, "second": seconds}
        pieces = self.division.parts
        return [s for part, held in parts.items() for s in whole_shards(part, held, pieces)]

    def owned(self) -> list[Shard]:
        """Ranks that hold the same write an even part of it each."""
        parts = self.division.parts
        whole = [shard for shard in self.held() if shard.name not in parts]
        own = [shard for shard in self.held() if shard.name in parts]
        return [*_share(whole, self.mesh.world), *_share(own, self.mesh.data)]

    def steps(self) -> list[Tensor]:
        return [self.optimizer.state[p]["step"] for p in self.encoder.parameters()]

    def restored(self) -> None:
        """Parameters and moments were overwritten where they lie."""


def _share(shards: list[Shard], ranks: World) -> list[Shard]:
    total = sum(len(shard.values) for shard in shards)
    return cut(shards, ranks.slice_of(total), total)
