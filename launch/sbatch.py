"""sbatch calls. All ``#SBATCH`` lines live in ``slurm/``; what is passed here overrides them: size,
partition, limit, where logs go.

A site's variables and setup lines go into ``logs/setup.sh`` of the job's folder, which the job
sources on every node (values with commas would not survive ``--export``).
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import click

from ovtrain.config.load import checked, data_folder, find_config, load
from ovtrain.config.site import SiteConfig
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import ConfigError, OvtrainError

SETUP = Path("logs") / "setup.sh"


@dataclass(frozen=True)
class Job:
    """One sbatch call: ``script`` of ``slurm/`` with its arguments. ``out``: the folder of its logs
    and setup; ``writes``: files that it reads, made before it is submitted; ``after``: names of
    jobs, of which all must have ended well."""

    name: str
    script: str
    arguments: tuple[str, ...]
    options: Mapping[str, str]
    out: Path
    site: SiteConfig
    writes: Mapping[Path, str] = field(default_factory=dict[Path, str])
    after: tuple[str, ...] = ()

    def call(self, ids: Sequence[str] = ()) -> list[str]:
        """The whole call, first word ``sbatch``; ``ids``: of the jobs that it waits for."""
        waits = {"dependency": f"afterok:{':'.join(ids)}"} if ids else {}
        options = {**self.options, **waits, "export": f"ALL,OVTRAIN_SETUP={self.out / SETUP}"}
        flags = [
            f"--{key}={value}" if value != "yes" else f"--{key}"
            for key, value in options.items()
            if value
        ]
        # What waits for a job that failed would wait for good.
        flags += ["--kill-on-invalid-dep=yes"] if ids else []
        script = str(data_folder("slurm") / f"{self.script}.sbatch")
        return ["sbatch", *flags, *self.site.sbatch, script, *self.arguments]


def load_site(name: str | None, **given: str | int | None) -> SiteConfig:
    """A site's values, with those ``given`` (not None) in their place. Raises ConfigError."""
    site = load(SiteConfig, find_config(name) if name else None)
    site = replace(site, **{key: value for key, value in given.items() if value is not None})
    checked(name or "command line", site)
    return site


def setup_lines(site: SiteConfig) -> str:
    """The shell file that a node sources first."""
    python = site.python or ("python" if site.setup or site.container else sys.executable)
    given = {
        "OVTRAIN_PYTHON": python,
        "OVTRAIN_CONTAINER": site.container,
        "OVTRAIN_SRUN": shlex.join(site.srun),
        "OVTRAIN_RESTARTS": str(site.restarts),
        "OVTRAIN_CHECK": "" if site.check else "0",
        "OVTRAIN_NPROC": "" if site.gpus_per_node else str(site.ranks_per_node),
        **site.env,
    }
    exports = [f"export {key}={shlex.quote(str(value))}" for key, value in given.items() if value]
    return "\n".join([*exports, *([site.setup.rstrip()] if site.setup else [])]) + "\n"


def shared_options(site: SiteConfig, name: str, out: Path, *, cpu: bool = False) -> dict[str, str]:
    """What every call of a site says. ``cpu``: a job without GPUs."""
    return {
        "job-name": name,
        "partition": (site.cpu_partition if cpu else "") or site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": "" if cpu else site.constraint,
        "reservation": site.reservation,
        "exclude": site.exclude,
        "time": site.cpu_time if cpu else site.time,
        "output": str(out / "logs" / "slurm-%j.out"),
    }


def gpu_options(site: SiteConfig, nodes: int, gpus_per_node: int) -> dict[str, str]:
    """Nodes, tasks, GPUs and cores of a job with a task per node, or per rank."""
    ranks = gpus_per_node or site.ranks_per_node
    tasks = ranks if site.task_per == "gpu" else 1
    return {
        "nodes": str(nodes),
        "ntasks-per-node": str(tasks),
        "gpus-per-node": str(gpus_per_node) if gpus_per_node and not site.gres else "",
        "gres": f"{site.gres}:{gpus_per_node}" if gpus_per_node and site.gres else "",
        "cpus-per-task": str(site.cpus_per_gpu * ranks // tasks),
        "mem": site.memory,
        "exclusive": "yes" if site.exclusive else "",
    }


def submit(jobs: Sequence[Job]) -> dict[str, str]:
    """Submit ``jobs`` in their order: {name: job id}. Where one is refused, those before it are
    taken back. Raises OvtrainError."""
    if shutil.which("sbatch") is None:
        raise ConfigError("sbatch", "no such command here", fix="run this on a SLURM login node")
    ids: dict[str, str] = {}
    for job in jobs:
        _prepare(job)
        call = job.call([ids[name] for name in job.after])
        done = subprocess.run(
            [call[0], "--parsable", *call[1:]], capture_output=True, text=True, check=False
        )
        if done.returncode:
            if ids:
                subprocess.run(["scancel", *ids.values()], check=False)
            taken = f"; jobs {', '.join(ids.values())} were cancelled" if ids else ""
            said = " ".join(done.stderr.split()) or f"status {done.returncode}"
            raise OvtrainError(f"sbatch, job {job.name}", said + taken, fix=shlex.join(call))
        ids[job.name] = done.stdout.strip().partition(";")[0]
        click.echo(f"job {ids[job.name]}  {job.name}  {_log(job, ids[job.name])}")
    return ids


def show(jobs: Sequence[Job]) -> None:
    """Print what ``submit`` would do."""
    for job in jobs:
        click.echo(shlex.join(job.call([f"<{name}>" for name in job.after])))
    told: dict[str, list[str]] = {}
    for job in jobs:
        files = told.setdefault(setup_lines(job.site).rstrip(), [])
        files += [path for path in [str(job.out / SETUP)] if path not in files]
    for lines, files in told.items():
        click.echo(f"# {', '.join(files)}\n{lines}", err=True)


def _log(job: Job, number: str) -> str:
    pattern = job.options["output"]
    return pattern.replace("%j", number).replace("%A", number).replace("%a", "*")


def _prepare(job: Job) -> None:
    (job.out / "logs").mkdir(parents=True, exist_ok=True)
    for path, text in {**job.writes, job.out / SETUP: setup_lines(job.site)}.items():
        with atomic_open(path, "w") as handle:
            handle.write(text)
