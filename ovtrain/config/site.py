"""Site section: what a cluster wants to hear in every sbatch call. An empty value is left out."""

from __future__ import annotations

from dataclasses import dataclass, field

from ovtrain.config.rules import POSITIVE, broken


@dataclass(frozen=True)
class SiteConfig:
    """``setup``: shell lines run on every node before training (modules, a virtual environment).
    ``env``: variables set for the job, as NAME: value."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = "24:00:00"
    nodes: int = 1
    gpus_per_node: int = 8
    cpus_per_gpu: int = 8
    setup: str = ""
    env: dict[str, str] = field(default_factory=dict[str, str])

    def problems(self) -> list[str]:
        return broken(self, "", {POSITIVE: ("nodes", "gpus_per_node", "cpus_per_gpu")})
