"""Runs whose traffic and memory test_traffic.py compares with the planner's."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ovtrain.costs.buckets import DEFAULT, Limits
from tests.helpers.training import base_config

MODEL = {"preset": "nano", "width": 64, "heads": 2, "depth": 3, "mlp": 1801}
EVEN = {"heads": 4, "mlp": 1804}
"""What tensor ranks can divide."""
TWO_LOSSES = {
    "heads": {
        "video": {"loss": "margin_softmax", "scale": 8.0, "optimizer": "rowwise_adamw"},
        "image": {"rows": "bf16", "moments": "bf16"},
    }
}


@dataclass(frozen=True)
class Case:
    """A run section on so many processes; ``limits``: DeepSpeed's, if not its own."""

    processes: int
    run: dict[str, Any]
    limits: Limits = DEFAULT


BF16: dict[str, Any] = {"precision": "bf16"}
TENSOR: dict[str, Any] = {"tensor_parallel": 2}
CASES = {
    "zero1-1": Case(1, {**BF16, "micro_batch": 3}),
    "zero3-1": Case(1, {"zero_stage": 3}),
    "ddp-2": Case(2, {"backend": "ddp", "micro_batch": 2, **TWO_LOSSES}, Limits(plain=10**5)),
    "zero1-2": Case(2, {**BF16, "micro_batch": 2, **TWO_LOSSES}, Limits(bucket=3 * 10**5)),
    "zero1-2-overlap": Case(2, {"overlap_comm": True, "micro_batch": 2}, Limits(bucket=2 * 10**5)),
    "zero2-2": Case(2, {"zero_stage": 2, "micro_batch": 2}),
    "zero3-2": Case(
        2,
        {"zero_stage": 3, **BF16, "micro_batch": 2, "recompute": 2},
        Limits(prefetch=10**5, live=4**9),
    ),
    "zero3-2-once": Case(2, {"zero_stage": 3}, Limits(prefetch=3 * 10**5, live=5 * 10**5)),
    "zero1-4": Case(4, {}),
    "zero2-4": Case(
        4,
        {"zero_stage": 2, **BF16, "micro_batch": 2, "global_batch": 13},
        Limits(bucket=2 * 10**5),
    ),
    "zero3-4": Case(
        4,
        {"zero_stage": 3, **BF16, "global_batch": 13, "micro_batch": 2},
        Limits(bucket=3 * 10**5, sub_group=10**5),
    ),
    "tp2-zero1-2": Case(2, {**TENSOR, "sequence_parallel": False, "micro_batch": 3}),
    "tp2-ddp-2": Case(2, {**TENSOR, "backend": "ddp", "recompute": 2, **TWO_LOSSES}),
    "tp2-ddp-4": Case(
        4, {**TENSOR, "backend": "ddp", "sequence_parallel": False, "recompute": 1, **BF16}
    ),
    "tp2-zero1-4": Case(4, {**TENSOR, "micro_batch": 2, "overlap_comm": True}),
    "tp2-zero2-4": Case(4, {**TENSOR, "zero_stage": 2, **BF16, "micro_batch": 3}),
    "tp2-zero3-4": Case(4, {**TENSOR, "zero_stage": 3, "micro_batch": 3, "recompute": 1}),
    "tp4-zero1-4": Case(4, {"tensor_parallel": 4, "forward_ahead": True, "micro_batch": 3}),
}


def write_case(setup: Path, name: str, case: Case) -> str:
    """As the job takes it: traffic:traffic-NAME.yaml=PREFETCH,LIVE,BUCKET,SUB_GROUP,PLAIN."""
    config = base_config(
        setup, **{"global_batch": 7, "out": str(setup / f"traffic-{name}")} | case.run
    )
    config["model"] |= MODEL
    if case.run.get("tensor_parallel", 1) > 1:
        config["model"] |= EVEN
    path = setup / f"traffic-{name}.yaml"
    path.write_text(OmegaConf.to_yaml(config))
    return f"traffic:{path}=" + ",".join(map(str, astuple(case.limits)))
