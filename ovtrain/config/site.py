"""Site section: what a cluster wants to hear in every sbatch call. An empty value is left out."""

from __future__ import annotations

from dataclasses import dataclass, field

from ovtrain.config.rules import NOT_NEGATIVE, POSITIVE, broken, not_among


@dataclass(frozen=True)
class SiteConfig:
    """partition, account, qos, constraint, reservation, exclude   as sbatch's options
    time           wall-clock limit
    nodes, gpus_per_node, cpus_per_gpu   size; no GPUs: ranks_per_node processes on CPUs
    gpu            the device's name for the check of memory before queueing: h200, a100, ...
    gres           asks for GPUs by --gres=GRES:N instead of --gpus-per-node: "gpu", "gpu:h100"
    memory         of a node; "0" is all of it
    exclusive      whole nodes
    task_per       one task per ``node``, which starts its ranks, or per ``gpu``
    warn_s         seconds from the warning signal to the time limit: a save must fit in
    restarts       failures in a row, without a newer checkpoint, after which a job ends
    check          measure devices and links before training
    cpu_partition, cpu_cores, cpu_time   for jobs without GPUs (preparation)
    python         interpreter on the nodes; "": after a setup or in a container ``python``, else
                   the one that submits
    container      words before the interpreter: apptainer exec --nv image.sif
    sbatch, srun   more options, word by word
    setup          shell lines that every node runs first (modules, a virtual environment)
    env            variables set for the job, as NAME: value
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    exclude: str = ""
    time: str = "24:00:00"
    nodes: int = 1
    gpus_per_node: int = 8
    ranks_per_node: int = 1
    cpus_per_gpu: int = 8
    gpu: str = ""
    gres: str = ""
    memory: str = ""
    exclusive: bool = False
    task_per: str = "node"
    warn_s: int = 300
    restarts: int = 3
    check: bool = True
    cpu_partition: str = ""
    cpu_cores: int = 16
    cpu_time: str = "12:00:00"
    python: str = ""
    container: str = ""
    sbatch: list[str] = field(default_factory=list[str])
    srun: list[str] = field(default_factory=list[str])
    setup: str = ""
    env: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def local_ranks(self) -> int:
        """Processes of a training job on each node."""
        return self.gpus_per_node or self.ranks_per_node

    @property
    def world(self) -> int:
        return self.nodes * self.local_ranks

    def problems(self) -> list[str]:
        rules = {
            POSITIVE: ("nodes", "ranks_per_node", "cpus_per_gpu", "warn_s", "cpu_cores"),
            NOT_NEGATIVE: ("gpus_per_node", "restarts"),
        }
        found = broken(self, "", rules) + not_among(self, "", {"task_per": ("node", "gpu")})
        names = [name for name in self.env if not name.isidentifier()]
        return found + [f"env has {name!r}; allowed: names of variables" for name in names]
