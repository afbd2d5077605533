"""DeepSpeed ZeRO as a backend: the only home of deepspeed. Its JSON is derived from the config.

Two of its habits are undone here and nowhere else: it averages gradients over ranks (``backward``
multiplies by the world size), and its clip sees only its own parameters (``scaled_global_norm``,
its own hook, is given the class-sharded plane's squares).
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ovtrain.checkpoint.state import EncoderTensors
from ovtrain.config.optim import OptimConfig
from ovtrain.config.train import RunConfig
from ovtrain.data.batch import PackedBatch
from ovtrain.distributed.context import World
from ovtrain.distributed.grad_norm import joint_norm
from ovtrain.engine.backend import encode
from ovtrain.models.encoder import Encoder
from ovtrain.optim.param_groups import param_groups


def import_deepspeed() -> Any:
    """Import DeepSpeed without its habit of compiling at run time."""
    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not cuda:
        # Else DeepSpeed compiles a shared-memory op at run time: half a minute, and a compiler
        # needed. (The attribute deepspeed.comm.torch is torch itself; the module has to be asked
        # for.)
        backend: Any = import_module("deepspeed.comm.torch")
        backend.build_shm_op = lambda: None
    return deepspeed


def deepspeed_json(run: RunConfig, optim: OptimConfig, micro_steps: int) -> dict[str, Any]:
    """DeepSpeed's own configuration. Batch sizes are ovtrain's affair: samples are packed."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": optim.clip,
        "zero_optimization": {"stage": run.zero_stage, "overlap_comm": False},
        "bf16": {"enabled": run.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
    }


def _known(tensor: Tensor | None) -> Tensor:
    """DeepSpeed answers None for a parameter that it does not hold; it was given them all."""
    assert tensor is not None
    return tensor


class DeepSpeedBackend:
    """The encoder under ZeRO stage 1 or 2."""

    def __init__(
        self, encoder: Encoder, run: RunConfig, optim: OptimConfig, world: World, micro_steps: int
    ) -> None:
        deepspeed = import_deepspeed()
        self.world = world
        groups = param_groups(encoder, optim.weight_decay)
        betas = (optim.beta1, optim.beta2)
        adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps)
        deepspeed.init_distributed("nccl" if world.device.type == "cuda" else "gloo")
        self.engine, self.zero, _, _ = deepspeed.initialize(
            model=encoder,
            optimizer=adamw,
            config=deepspeed_json(run, optim, micro_steps),
            dist_init_required=False,
        )
        self._create_optimizer_state()
        self._own_norm = self.zero.scaled_global_norm
        self.zero.scaled_global_norm = self._joint_norm
        self._sharded_squares = torch.zeros(())
        self._norm = torch.zeros(())

    def _joint_norm(self, *args: Any, **kwargs: Any) -> Tensor:
        own = torch.as_tensor(self._own_norm(*args, **kwargs))
        self._norm = joint_norm(own, self._sharded_squares)
        return self._norm

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        return encode(self.engine, batch)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.engine.backward(loss * self.world.size, scale_wrt_gas=False)
        if not last:
            self.engine.step()  # counts the micro-step; updates nothing yet

    def step(self, lr: float, sharded_squares: Tensor) -> Tensor:
        for group in self.zero.optimizer.param_groups:
            group["lr"] = lr
        self._sharded_squares = sharded_squares
        self.engine.step()
        return self._norm

    def export_state(self) -> EncoderTensors:
        """Collective: each parameter is gathered from its ZeRO partitions."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        state: EncoderTensors = {"param": {}, "first": {}, "second": {}, "steps": {}}
        for name, parameter in self.engine.module.named_parameters():
            state["param"][name] = _known(safe_get_full_fp32_param(parameter))
            state["first"][name] = _known(safe_get_full_optimizer_state(parameter, "exp_avg"))
            state["second"][name] = _known(safe_get_full_optimizer_state(parameter, "exp_avg_sq"))
        state["steps"]["all"] = self._steps()[0].detach().clone().float().reshape(())
        return state

    def import_state(self, state: EncoderTensors) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        device = self.world.device
        for name, parameter in self.engine.module.named_parameters():
            safe_set_full_fp32_param(parameter, state["param"][name].to(device))
            for key, part in (("exp_avg", "first"), ("exp_avg_sq", "second")):
                safe_set_full_optimizer_state(parameter, state[part][name].to(device), key)
        for steps in self._steps():
            steps.fill_(float(state["steps"]["all"]))
        self.zero.update_lp_params()

    def _partitions(self) -> list[Tensor]:
        """This rank's flat fp32 optimizer partitions, one per parameter group."""
        return list(self.zero.single_partition_of_fp32_groups)

    def _steps(self) -> list[Tensor]:
        held = self.zero.optimizer.state
        return [held[p]["step"] for p in self._partitions()]

    def _create_optimizer_state(self) -> None:
        """AdamW makes its state in the first update; a checkpoint may need it before. DeepSpeed
        would also link parameters to it after the first group's update, when the second has none
        yet."""
        for partition in self._partitions():
            held = self.zero.optimizer.state[partition]
            held["step"] = torch.zeros(())
            held["exp_avg"] = torch.zeros_like(partition)
            held["exp_avg_sq"] = torch.zeros_like(partition)
        self.zero._lazy_init_hp_params_optimizer_state()
