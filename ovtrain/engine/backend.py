"""Backend: who owns the replicated plane (encoder, pooling), its gradients and its optimizer.

Gradient contract: ``backward`` takes a scalar whose gradients, *summed* over ranks and micro-steps,
are those of the step's global-mean loss. A backend whose machinery averages undoes that itself.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from ovtrain.checkpoint.state import EncoderTensors
from ovtrain.config.optim import OptimConfig
from ovtrain.data.batch import PackedBatch
from ovtrain.distributed.collectives import all_reduce
from ovtrain.distributed.context import World
from ovtrain.distributed.grad_norm import clip_factor, joint_norm
from ovtrain.models.encoder import Encoder
from ovtrain.optim.param_groups import param_groups


class Backend(Protocol):
    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """tokens (N, D), pooled (B, D)."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradients of one micro-step; ``last`` marks the step's last one."""
        ...

    def step(self, lr: float, sharded_squares: Tensor) -> Tensor:
        """Clip by the norm over both planes, update, clear. Returns that norm ()."""
        ...

    def export_state(self) -> EncoderTensors: ...

    def import_state(self, state: EncoderTensors) -> None: ...


def encode(model: torch.nn.Module, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Call an encoder (or a wrapper of one) on a batch."""
    return model(batch.patches, batch.positions, batch.cu_seqlens, batch.max_seqlen, batch.group_id)


class PlainBackend:
    """Plain data parallelism, the reference: whole parameters on each rank, gradients summed once
    per step. bf16 runs under autocast, with float32 parameters."""

    def __init__(
        self, encoder: Encoder, optim: OptimConfig, world: World, *, bf16: bool = False
    ) -> None:
        self.encoder, self.world, self.clip, self.bf16 = encoder, world, optim.clip, bf16
        groups = param_groups(encoder, optim.weight_decay)
        betas = (optim.beta1, optim.beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps)

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        with self._precision():
            return encode(self.encoder, batch)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, lr: float, sharded_squares: Tensor) -> Tensor:
        gradients = [p.grad for p in self.encoder.parameters() if p.grad is not None]
        if self.world.group is not None:
            flat = all_reduce(torch.cat([g.flatten() for g in gradients]), self.world.group)
            at = 0
            for gradient in gradients:
                gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
                at += gradient.numel()
        squares = torch.stack([g.float().square().sum() for g in gradients]).sum()
        norm = joint_norm(squares.sqrt(), sharded_squares)
        factor = clip_factor(norm, self.clip)
        for gradient in gradients:
            gradient.mul_(factor)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def export_state(self) -> EncoderTensors:
        state: EncoderTensors = {"param": {}, "first": {}, "second": {}, "steps": {}}
        for name, parameter in self.encoder.named_parameters():
            held = self.optimizer.state.get(parameter, {})
            state["param"][name] = parameter.detach()
            state["first"][name] = held.get("exp_avg", torch.zeros_like(parameter))
            state["second"][name] = held.get("exp_avg_sq", torch.zeros_like(parameter))
            state["steps"]["all"] = torch.as_tensor(held.get("step", 0.0)).float()
        return state

    @torch.no_grad()
    def import_state(self, state: EncoderTensors) -> None:
        for name, parameter in self.encoder.named_parameters():
            parameter.copy_(state["param"][name])
            if float(state["steps"]["all"]):
                self.optimizer.state[parameter] = {
                    "step": state["steps"]["all"].clone(),
                    "exp_avg": state["first"][name].to(parameter.device).clone(),
                    "exp_avg_sq": state["second"][name].to(parameter.device).clone(),
                }
