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
from ovtrain.data.batch import PackedBatch
from ovtrain.distributed.collectives import all_reduce
from ovtrain.distributed.context import World
from ovtrain.distributed.grad_norm import clip_factor, joint_norm
from ovtrain.engine.gate import UpdateGate
from ovtrain.models.encoder import Encoder
from ovtrain.optim.param_groups import param_groups


class Backend(EncoderOwner, Protocol):
    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """tokens (N, D), pooled (B, D)."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradients of one micro-step; ``last`` marks the step's last one."""
        ...

    def step(self, lr: float, sharded_squares: Tensor, gate: UpdateGate) -> Tensor:
        """Clip by the norm over both planes, update where ``gate`` lets it, clear. Returns that
        norm ()."""
        ...


def encode(model: torch.nn.Module, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Call an encoder (or a wrapper of one) on a batch."""
    return model(batch.patches, batch.positions, batch.cu_seqlens, batch.max_seqlen, batch.group_id)


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
    """Plain data parallelism, the reference: whole parameters on each rank, gradients summed once
    per step. bf16 runs under autocast, with float32 parameters."""

    def __init__(
        self, encoder: Encoder, optim: OptimConfig, world: World, *, bf16: bool = False
    ) -> None:
        self.encoder, self.world, self.clip, self.bf16 = encoder, world, optim.clip, bf16
        self.optimizer = adamw(encoder, optim)
        for parameter in encoder.parameters():
            create_state(self.optimizer, parameter)

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        with self._precision():
            return encode(self.encoder, batch)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, lr: float, sharded_squares: Tensor, gate: UpdateGate) -> Tensor:
        gradients = [p.grad for p in self.encoder.parameters() if p.grad is not None]
        if self.world.group is not None:
            flat = all_reduce(torch.cat([g.flatten() for g in gradients]), self.world.group)
            at = 0
            for gradient in gradients:
                gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
                at += gradient.numel()
        squares = torch.stack([g.float().square().sum() for g in gradients]).sum()
        norm = joint_norm(squares.sqrt(), sharded_squares)
        self.optimizer.found_inf = gate.judge(norm)  # type: ignore[attr-defined]
        factor = clip_factor(norm, self.clip)
        for gradient in gradients:
            gradient.mul_(factor)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def shapes(self) -> Mapping[str, torch.Size]:
        return {name: p.shape for name, p in self.encoder.named_parameters()}

    def held(self) -> list[Shard]:
        state, named = self.optimizer.state, dict(self.encoder.named_parameters())
        firsts = {name: state[p]["exp_avg"] for name, p in named.items()}
        seconds = {name: state[p]["exp_avg_sq"] for name, p in named.items()}
        parts = {"param": named, "first": firsts, "second": seconds}
        return [s for part, tensors in parts.items() for s in whole_shards(part, tensors)]

    def owned(self) -> list[Shard]:
        """All ranks hold the same: each writes an even part of it."""
        shards = self.held()
        total = sum(len(shard.values) for shard in shards)
        return cut(shards, self.world.slice_of(total), total)

    def steps(self) -> list[Tensor]:
        return [self.optimizer.state[p]["step"] for p in self.encoder.parameters()]

    def restored(self) -> None:
        """Parameters and moments were overwritten where they lie."""
