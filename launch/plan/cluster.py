"""The machine that a plan is for: devices of a table, and what a user knows better."""

from __future__ import annotations

from dataclasses import dataclass

from launch.cluster_plan import CPU, CPU_DEVICE, device_of
from ovtrain.costs.links import Links
from ovtrain.schema.errors import ConfigError

MFU = 0.45
"""Share of a GPU's peak that the encoder's and the heads' products reach while nothing else is
waited for. An assumption: language-model stacks report 46 to 48 %, none of ovtrain's GPU paths has
been timed."""
DISK_GBS = 5.0
"""Per node, to storage that all nodes share: an assumption."""


@dataclass(frozen=True)
class Request:
    """As the options of ``ovtrain plan``; 0 takes the device's own or a default. ``network_gbs``
    and ``disk_gbs`` are a node's, rates of loading one core's."""

    nodes: int = 1
    per_node: int = 1
    gpu: str = "h200"
    tflops: float = 0.0
    mfu: float = 0.0
    memory_gb: float = 0.0
    network_gbs: float = 0.0
    disk_gbs: float = DISK_GBS
    clips_per_s: float = 0.0
    pictures_per_s: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """``peak`` and ``tflops``, what of it is achieved while computing, of one device."""

    asked: Request
    peak: float
    tflops: float
    memory_gb: float
    memory_gbs: float
    links: Links

    @property
    def world(self) -> int:
        return self.asked.nodes * self.asked.per_node

    @property
    def is_cpu(self) -> bool:
        return self.asked.gpu.lower() == CPU


def cluster_of(asked: Request) -> Cluster:
    """Raises ConfigError."""
    device = device_of(asked.gpu)
    if asked.tflops and asked.mfu:
        raise ConfigError("--tflops and --mfu", "say the same", fix="give one of them")
    if asked.mfu > 1:
        raise ConfigError(
            f"--mfu {asked.mfu:g}", "more than the peak", allowed="above 0, at most 1"
        )
    if device is not CPU_DEVICE and asked.tflops > device.tflops:
        raise ConfigError(
            f"--tflops {asked.tflops:g}",
            f"more than the peak of {asked.gpu}",
            allowed=f"at most {device.tflops:g}",
        )
    peak = asked.tflops if device is CPU_DEVICE and asked.tflops else device.tflops
    achieved = peak * (asked.mfu or (1.0 if device is CPU_DEVICE else MFU))
    return Cluster(
        asked,
        peak,
        asked.tflops or achieved,
        asked.memory_gb or device.memory_gb,
        device.memory_gbs,
        Links(
            asked.nodes,
            asked.per_node,
            device.link_gbs / 2,
            asked.network_gbs or device.network_gbs * asked.per_node,
        ),
    )
