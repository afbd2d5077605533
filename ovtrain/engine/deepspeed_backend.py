"""DeepSpeed ZeRO as a backend: the only home of deepspeed. Its JSON is derived from the config.

Two of its habits are undone here and nowhere else: it averages gradients over ranks (``backward``
multiplies by the world size), and its clip sees only its own parameters (the hook where it takes
its norm is given the class-sharded plane's squares). What differs between the stages stands in
``_Stage12`` and ``_Stage3``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

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
    zero: dict[str, Any] = {"stage": run.zero_stage, "overlap_comm": False}
    if run.zero_stage == 3:
        # DeepSpeed's defaults, 1e9 parameters, hold all weights of our encoders whole on each rank
        # from their forward to their backward pass. Here they go after use, and are fetched ahead
        # while fewer than these lie whole.
        zero |= {"stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 10**8}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": optim.clip,
        "zero_optimization": zero,
        "bf16": {"enabled": run.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
    }


class _Stage(Protocol):
    """What a ZeRO optimizer keeps to itself and a stage keeps in its own way."""

    def partitions(self) -> list[Tensor]:
        """This rank's flat fp32 parts of the parameters, as torch's optimizer holds them."""
        ...

    def link_state(self) -> None:
        """The optimizer's state of all partitions now exists."""
        ...

    def widen_norm(self, widen: Callable[[Tensor], Tensor]) -> None:
        """Clip by ``widen(norm)`` where DeepSpeed would clip by its own parameters' norm."""
        ...

    def after_backward(self) -> None:
        """A micro-step's gradients are there."""
        ...

    def write(self, parameter: Tensor, value: Tensor, key: str | None = None) -> None:
        """Set the fp32 parameter, or its optimizer state ``key``, from the whole ``value``."""
        ...

    def written(self) -> None:
        """Bring the weights of the forward pass up to what was written."""
        ...


class _Stage12:
    """Whole weights on each rank, the optimizer's part of them flat."""

    def __init__(self, zero: Any) -> None:
        self.zero = zero

    def partitions(self) -> list[Tensor]:
        return list(self.zero.single_partition_of_fp32_groups)

    def link_state(self) -> None:
        # DeepSpeed would link parameters to it after the first group's update, when the second
        # has none yet.
        self.zero._lazy_init_hp_params_optimizer_state()

    def widen_norm(self, widen: Callable[[Tensor], Tensor]) -> None:
        own = self.zero.scaled_global_norm

        def widened(*args: Any, **kwargs: Any) -> Tensor:
            return widen(torch.as_tensor(own(*args, **kwargs)))

        self.zero.scaled_global_norm = widened

    def after_backward(self) -> None:
        """Nothing is left over."""

    def write(self, parameter: Tensor, value: Tensor, key: str | None = None) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if key is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    def written(self) -> None:
        self.zero.update_lp_params()


class _Stage3:
    """A part of each weight on each rank: equal parts, the last ones filled up with zeros."""

    def __init__(self, zero: Any, world: World) -> None:
        self.zero, self.world = zero, world
        offload: Any = import_module("deepspeed.runtime.zero.parameter_offload")
        self.entered: list[Any] = offload.FWD_MODULE_STACK
        self.outside = len(self.entered)

    def partitions(self) -> list[Tensor]:
        return list(self.zero.fp32_partitioned_groups_flat)

    def link_state(self) -> None:
        """It is found through the partitions."""

    def widen_norm(self, widen: Callable[[Tensor], Tensor]) -> None:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        own = self.zero._get_norm_groups

        def widened() -> list[Tensor]:
            """One group's norm instead of several; DeepSpeed combines what it is given."""
            return [widen(combine_grad_norm_groups(own()))]

        self.zero._get_norm_groups = widened

    def after_backward(self) -> None:
        # DeepSpeed counts modules in and out of their forward pass. A recomputed block stops at the
        # last tensor that is needed, before its end, and would stay counted for good.
        del self.entered[self.outside :]

    def write(self, parameter: Tensor, value: Tensor, key: str | None = None) -> None:
        # DeepSpeed's setters of whole values fail where the ranks do not divide the value.
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        part = rank_part(value, self.world.rank, self.world.size)
        if key is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, key)

    def written(self) -> None:
        self.zero._partition_all_parameters()  # whole weights that are about hold old values
        for group in range(len(self.partitions())):
            self.zero._reassign_or_swap_out_partitioned_parameters(group)


def rank_part(value: Tensor, rank: int, size: int) -> Tensor:
    """(ceil(numel / size),) flat part ``rank`` of ``value``, zeros beyond its end."""
    flat = value.flatten()
    length = -(-len(flat) // size)
    padded = torch.nn.functional.pad(flat, (0, length * size - len(flat)))
    return padded[rank * length : (rank + 1) * length]


def _known(tensor: Tensor | None) -> Tensor:
    """DeepSpeed answers None for a parameter that it does not hold; it was given them all."""
    assert tensor is not None
    return tensor


class DeepSpeedBackend:
    """The encoder under ZeRO stage 1, 2 or 3. Under stage 3 its parameters are empty between steps;
    ``export_state`` has them whole."""

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
        self.stage: _Stage
        self.stage = _Stage3(self.zero, world) if run.zero_stage == 3 else _Stage12(self.zero)
        self._create_optimizer_state()
        self.stage.widen_norm(self._joint_norm)
        self._sharded_squares = torch.zeros(())
        self._norm = torch.zeros(())

    def _joint_norm(self, own: Tensor) -> Tensor:
        self._norm = joint_norm(own, self._sharded_squares)
        return self._norm

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        return encode(self.engine, batch)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.engine.backward(loss * self.world.size, scale_wrt_gas=False)
        self.stage.after_backward()
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
        device = self.world.device
        for name, parameter in self.engine.module.named_parameters():
            self.stage.write(parameter, state["param"][name].to(device))
            self.stage.write(parameter, state["first"][name].to(device), "exp_avg")
            self.stage.write(parameter, state["second"][name].to(device), "exp_avg_sq")
        for steps in self._steps():
            steps.fill_(float(state["steps"]["all"]))
        self.stage.written()

    def _steps(self) -> list[Tensor]:
        held = self.zero.optimizer.state
        return [held[p]["step"] for p in self.stage.partitions()]

    def _create_optimizer_state(self) -> None:
        """AdamW makes its state in the first update; a checkpoint may need it before."""
        for partition in self.stage.partitions():
            held = self.zero.optimizer.state[partition]
            held["step"] = torch.zeros(())
            held["exp_avg"] = torch.zeros_like(partition)
            held["exp_avg_sq"] = torch.zeros_like(partition)
        self.stage.link_state()
