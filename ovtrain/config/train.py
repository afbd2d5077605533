"""Run section and the root of a training config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ovtrain.config.data import DataConfig
from ovtrain.config.guards import GuardConfig
from ovtrain.config.head import HeadConfig
from ovtrain.config.load import overlay
from ovtrain.config.model import ModelConfig
from ovtrain.config.optim import OptimConfig
from ovtrain.config.rules import NOT_NEGATIVE, POSITIVE, broken, not_among

BACKENDS = ("deepspeed", "ddp")
PRECISIONS = ("fp32", "bf16")
ZERO_STAGES = (1, 2, 3)
WANDB = ("", "online", "offline")


@dataclass(frozen=True)
class RunConfig:
    """One of ``steps`` and ``samples`` is given; ``global_batch`` counts samples of all sources.

    ``init_from``: a run directory or checkpoint whose encoder starts this run (stage 2 from 1).
    """

    out: str = "runs/pretrain"
    steps: int = 0
    samples: int = 0
    global_batch: int = 256
    micro_batch: int = 0
    """Samples per rank in one forward pass; 0 = the rank's whole share of the batch."""
    backend: str = "deepspeed"
    zero_stage: int = 1
    """What ranks share under deepspeed: 1 the optimizer's states, 2 the gradients, too, 3 the
    weights, too."""
    tensor_parallel: int = 1
    """So many neighbouring ranks hold parts of one encoder and read the same samples; the other
    dimension of the ranks is data parallel, under either backend and every stage."""
    sequence_parallel: bool = True
    """Tensor ranks also divide the tokens between the divided products: norms, residuals, pooling.
    No effect with tensor_parallel=1."""
    forward_ahead: bool = False
    """With several micro-steps, the forward pass of one runs while the embeddings of the one before
    are gathered from all ranks. Keeps the activations of two; not under zero_stage=3."""
    overlap_comm: bool = False
    """deepspeed: sum gradients bucket by bucket beside the backward pass, as ddp always does. Its
    host then waits for the device at the end of each pass."""
    precision: str = "bf16"
    seed: int = 0
    init_from: str = ""
    log_every: int = 10
    checkpoint_every: int = 500
    keep: int = 2
    keep_every: int = 0
    """Checkpoints of every so many steps stay for good; 0 = none."""
    background_saves: bool = True
    """Train on while a copy of the state is written. Takes as much host memory as the rank's part
    of a checkpoint; false: the loop waits until it is on disk."""
    deterministic: bool = False
    """Only deterministic kernels; slower on a GPU."""
    peak_tflops: float = 0.0
    """bf16 TFLOP/s of one device, for the logged MFU; 0 = by the device's name, if it is known."""
    wandb: str = ""
    """Metrics to Weights & Biases as well: ``online``, or ``offline``, for ``wandb sync`` later."""
    wandb_project: str = ""
    wandb_entity: str = ""
    wandb_group: str = ""
    """Where the run lies there; empty: as wandb itself decides."""
    tensorboard: bool = False
    """Metrics to TensorBoard's event files as well."""

    @property
    def total_steps(self) -> int:
        """The run's length in optimizer steps."""
        return self.steps or -(-self.samples // self.global_batch)

    def problems(self) -> list[str]:
        found: list[str] = []
        if (self.steps > 0) == (self.samples > 0):
            found.append(f"run.steps={self.steps} and run.samples={self.samples}; give exactly one")
        rules = {
            POSITIVE: ("global_batch", "tensor_parallel", "log_every", "checkpoint_every", "keep"),
            NOT_NEGATIVE: ("steps", "samples", "micro_batch", "seed", "keep_every", "peak_tflops"),
        }
        choices = {
            "backend": BACKENDS,
            "precision": PRECISIONS,
            "zero_stage": ZERO_STAGES,
            "wandb": WANDB,
        }
        if self.forward_ahead and self.backend == "deepspeed" and self.zero_stage == 3:
            found.append("run.forward_ahead=true; allowed with run.zero_stage 1 and 2, or with ddp")
        if self.overlap_comm and self.backend == "ddp":
            found.append("run.overlap_comm has no effect with run.backend=ddp; leave it out")
        return found + broken(self, "run.", rules) + not_among(self, "run.", choices)


@dataclass(frozen=True)
class TrainConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    heads: dict[str, Any] = field(default_factory=dict[str, Any])
    """Per source, what differs from ``head``: ``heads: {ocr: {sample_rate: 0.2}}``."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)

    def head_of(self, source: str) -> HeadConfig:
        """``head`` with what ``heads`` says of a source. Raises ConfigError."""
        given = self.heads.get(source, {})
        return overlay(self.head, given, f"heads.{source}") if given != {} else self.head
