"""Site section: what a cluster wants to hear in every sbatch call. An empty value is left out."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from ovtrain.config.rules import NOT_NEGATIVE, POSITIVE, broken, not_among

UNLIMITED = ("", "INFINITE", "UNLIMITED")
LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


def limit_s(text: str) -> float | None:
    """Seconds of a time limit as sbatch takes it: minutes, minutes:seconds, hours:minutes:seconds,
    days-hours[:minutes[:seconds]]; "" and UNLIMITED: infinity. None where it is none of these."""
    if text.upper() in UNLIMITED:
        return math.inf
    found = LIMIT.fullmatch(text)
    if found is None:
        return None
    parts = [int(part) for part in found["rest"].split(":")]
    if found["days"]:
        units = (3600, 60, 1)
    else:
        units = (3600, 60, 1) if len(parts) == 3 else (60, 1)
    return 86_400 * int(found["days"] or 0) + sum(a * b for a, b in zip(parts, units, strict=False))


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
        seconds = limit_s(self.time)
        found = broken(self, "", rules) + not_among(self, "", {"task_per": ("node", "gpu")})
        if seconds is None:
            found.append(f"time={self.time}; allowed: minutes, h:m:s, days-hours, ...")
        elif 2 * self.warn_s > seconds:
            found.append(
                f"warn_s={self.warn_s} of time={self.time}, {seconds} s: hardly any time to "
                f"train is left before the warning; allowed: up to {seconds // 2}"
            )
        names = [name for name in self.env if not name.isidentifier()]
        return found + [f"env has {name!r}; allowed: names of variables" for name in names]
