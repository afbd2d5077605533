"""DeepSpeed ZeRO as a backend: the only home of deepspeed. Its JSON is derived from the config.

Three of its habits are undone here and nowhere else: it averages gradients over data ranks
(``backward`` multiplies by their number); its clip sees only its own parameters (the hook where it
takes its norm is given the class-sharded plane's squares); and it waits for the device to hear
whether that norm is finite (the gate decides that on the device). What differs between the stages
stands in ``_Stage12`` and ``_Stage3``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from ovtrain.checkpoint.encoder_shards import Shard
from ovtrain.config.optim import OptimConfig
from ovtrain.config.train import RunConfig
from ovtrain.costs.buckets import PLAIN_BUCKET
from ovtrain.data.batch import PackedBatch
from ovtrain.distributed.comm_time import DEEPSPEED, measure_methods
from ovtrain.distributed.context import World
from ovtrain.distributed.grad_norm import joint_norm
from ovtrain.distributed.mesh import Mesh
from ovtrain.distributed.parallelize import Division
from ovtrain.engine.backend import adamw, create_state, encode
from ovtrain.engine.gate import UpdateGate
from ovtrain.engine.mpu import Mpu
from ovtrain.models.encoder import Encoder


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
    for stage in ("stage_1_and_2", "stage3"):
        # It would ask on the host, and leave the step out without a word to the other plane.
        module: Any = import_module(f"deepspeed.runtime.zero.{stage}")
        module.is_invalid_grad_norm = _never_invalid
    return deepspeed


def _never_invalid(norm: Tensor) -> bool:
    return False


def deepspeed_json(run: RunConfig, optim: OptimConfig, micro_steps: int) -> dict[str, Any]:
    """DeepSpeed's own configuration. Batch sizes are ovtrain's affair: samples are packed."""
    zero: dict[str, Any] = {"stage": run.zero_stage, "overlap_comm": run.overlap_comm}
    if run.overlap_comm:
        # Its default of 5e8 numbers is never full before the pass is over.
        zero["reduce_bucket_size"] = PLAIN_BUCKET
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
        "bf16": {"enabled": run.precision == "bf16", "check_grad_overflow": False},
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

    def piece(self, parameter: Tensor, key: str | None) -> tuple[int, Tensor] | None:
        """Where this rank's part of a flattened parameter begins, and a view of it in float32 or
        of its optimizer state ``key``; None where it has none."""
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

    def piece(self, parameter: Any, key: str | None) -> tuple[int, Tensor] | None:
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        return mapping.lp_fragment_address.start, mapping.get_hp_fragment(key)

    def written(self) -> None:
        self.zero.update_lp_params()


class _Stage3:
    """A part of each weight on each data rank: equal parts, the last ones filled up with zeros."""

    def __init__(self, zero: Any, data: World) -> None:
        self.zero, self.data = zero, data
        offload: Any = import_module("deepspeed.runtime.zero.parameter_offload")
        self.entered: list[Any] = offload.FWD_MODULE_STACK
        self.outside = len(self.entered)

    def partitions(self) -> list[Tensor]:
        return list(self.zero.fp32_partitioned_groups_flat)

    def link_state(self) -> None:
        """It is found through the partitions."""

    def widen_norm(self, widen: Callable[[Tensor], Tensor]) -> None:
        own = self.zero.unscale_and_clip_grads
        widened = torch.zeros(())

        def clip(sub_group: int, total: Tensor) -> None:
            nonlocal widened
            if sub_group == 0:
                widened = widen(torch.as_tensor(total))
            own(sub_group, widened)

        self.zero.unscale_and_clip_grads = clip

    def after_backward(self) -> None:
        # DeepSpeed counts modules in and out of their forward pass. A recomputed block stops at the
        # last tensor that is needed, before its end, and would stay counted for good.
        del self.entered[self.outside :]

    def piece(self, parameter: Any, key: str | None) -> tuple[int, Tensor] | None:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        if key is None:
            part = _known(safe_get_local_fp32_param(parameter))
        else:
            part = _known(safe_get_local_optimizer_state(parameter, key))
        part = part.view(-1)
        start = self.data.rank * len(part)
        left = parameter.ds_numel - start
        return (start, part[:left]) if left > 0 else None

    def written(self) -> None:
        self.zero._partition_all_parameters()  # whole weights that are about hold old values
        for group in range(len(self.partitions())):
            self.zero._reassign_or_swap_out_partitioned_parameters(group)


def _known(tensor: Tensor | None) -> Tensor:
    """DeepSpeed answers None for a parameter that it does not hold; it was given them all."""
    assert tensor is not None
    return tensor


class DeepSpeedBackend:
    """The encoder under ZeRO stage 1, 2 or 3. Under stage 3 its parameters are empty between
    steps."""

    def __init__(
        self,
        encoder: Encoder,
        division: Division,
        run: RunConfig,
        optim: OptimConfig,
        mesh: Mesh,
        micro_steps: int,
    ) -> None:
        deepspeed = import_deepspeed()
        self.mesh, self.division = mesh, division
        # Stage 3 keeps account of one pass at a time.
        self.runs_ahead = run.zero_stage < 3
        deepspeed.init_distributed("nccl" if mesh.world.device.type == "cuda" else "gloo")
        groups: Any = import_module("deepspeed.utils.groups")
        groups.mpu = None  # an earlier engine's of this process
        self.engine, self.zero, _, _ = deepspeed.initialize(
            model=encoder,
            optimizer=adamw(encoder, optim),
            config=deepspeed_json(run, optim, micro_steps),
            mpu=Mpu(mesh) if mesh.tensor.size > 1 else None,
            dist_init_required=False,
        )
        comm: Any = import_module("deepspeed.comm.comm")
        measure_methods(comm.cdb, DEEPSPEED)
        self.stage: _Stage
        self.stage = _Stage3(self.zero, mesh.data) if run.zero_stage == 3 else _Stage12(self.zero)
        for partition in self.stage.partitions():
            create_state(self.zero.optimizer, partition)
        self.stage.link_state()
        self.stage.widen_norm(self._joint_norm)
        self._sharded_squares = torch.zeros(())
        self._gate: UpdateGate | None = None
        self._norm = torch.zeros(())

    def _joint_norm(self, own: Tensor) -> Tensor:
        assert self._gate is not None
        self._norm = joint_norm(own, self._sharded_squares)
        self.zero.optimizer.found_inf = self._gate.judge(self._norm)
        return self._norm

    def forward(self, batch: PackedBatch) -> Tensor:
        return encode(self.engine, batch)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.engine.backward(loss * self.mesh.data.size, scale_wrt_gas=False)
        self.stage.after_backward()
        if not last:
            self.engine.step()  # counts the micro-step; updates nothing yet

    def step(self, lr: float, sharded_squares: Tensor, gate: UpdateGate) -> Tensor:
        for group in self.zero.optimizer.param_groups:
            group["lr"] = lr
        self._sharded_squares, self._gate = sharded_squares, gate
        self.engine.step()
        return self._norm

    def shapes(self) -> Mapping[str, torch.Size]:
        return self.division.shapes

    def held(self) -> list[Shard]:
        keys = {"param": None, "first": "exp_avg", "second": "exp_avg_sq"}
        found = [
            (part, name, self.stage.piece(parameter, key))
            for part, key in keys.items()
            for name, parameter in self.engine.module.named_parameters()
        ]
        parts = self.division.parts
        return [Shard(p, n, *piece, parts.get(n)) for p, n, piece in found if piece is not None]

    def owned(self) -> list[Shard]:
        """ZeRO has dealt everything out to data ranks; what tensor ranks hold whole, the first of
        them saves."""
        parts = self.division.parts
        return [s for s in self.held() if s.name in parts or self.mesh.speaks]

    def steps(self) -> list[Tensor]:
        held = self.zero.optimizer.state
        return [held[p]["step"] for p in self.stage.partitions()]

    def restored(self) -> None:
        self.stage.written()
