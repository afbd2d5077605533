"""sbatch calls. All ``#SBATCH`` lines live in ``slurm/``; what is passed here overrides them: size,
partition, limit, where logs go.

A site's variables and setup lines go into ``logs/setup.sh`` of the job's folder, which the job
sources on every node. OVTRAIN_SETUP names it in sbatch's own environment, which ``--export=ALL``
passes on: a value with a comma would not survive ``--export``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

import click
import yaml

from launch.run_folder import unwritable
from ovtrain.config.load import checked, data_folder, find_config, overlay
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

    @property
    def setup(self) -> Path:
        """The shell file that its nodes source first."""
        return self.out / SETUP

    def call(self, ids: Sequence[str] = ()) -> list[str]:
        """The whole call, first word ``sbatch``; ``ids``: of the jobs that it waits for."""
        waits = {"dependency": f"afterok:{':'.join(ids)}"} if ids else {}
        options = {**self.options, **waits, "export": "ALL"}
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
    """A site's values, with those ``given`` (not None) in their place. ``$`` in it is the shell's.
    Raises ConfigError."""
    values: object = {}
    if name:
        path = find_config(name)
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(str(path), "is not YAML", fix=" ".join(str(error).split())) from error
    site = overlay(SiteConfig(), _literal(values), name or "site")
    site = replace(site, **{key: value for key, value in given.items() if value is not None})
    checked(name or "command line", site)
    return site


def changed_site(site: SiteConfig, changes: Mapping[str, object], where: str) -> SiteConfig:
    """Raises ConfigError."""
    made = overlay(SiteConfig(), _literal({**asdict(site), **changes}), where)
    checked(where, made)
    return made


def _literal(value: object) -> object:
    """Without what OmegaConf would take for a reference to another key."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, Mapping):
        return {key: _literal(entry) for key, entry in cast(Mapping[object, object], value).items()}
    if isinstance(value, list):
        return [_literal(entry) for entry in cast(list[object], value)]
    return value


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
    }
    given = {key: value for key, value in given.items() if value} | site.env
    exports = [f"export {key}={shlex.quote(str(value))}" for key, value in given.items()]
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
        "output": log_pattern(out, "%j"),
    }


def log_pattern(out: Path, name: str) -> str:
    """Of a job's log below ``out``; % has a meaning there."""
    return str(out / "logs").replace("%", "%%") + f"/slurm-{name}.out"


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
    for job in jobs:
        _prepare(job)
    ids: dict[str, str] = {}
    for job in jobs:
        call = job.call([ids[name] for name in job.after])
        done = subprocess.run(
            [call[0], "--parsable", *call[1:]],
            env=os.environ | {"OVTRAIN_SETUP": str(job.setup)},
            capture_output=True,
            text=True,
            check=False,
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


def folder_problems(jobs: Sequence[Job]) -> list[str]:
    """Folders that cannot be written to, or that two sites' jobs would share."""
    found: list[str] = []
    setups: dict[Path, Job] = {}
    for job in jobs:
        other = setups.setdefault(job.out, job)
        if other is job:
            found += unwritable(f"job {job.name}", job.out)
        elif setup_lines(other.site) != setup_lines(job.site):
            found.append(
                f"jobs {other.name} and {job.name}: other sites, one folder {job.out}; give each "
                "its own"
            )
    return found


def show(jobs: Sequence[Job]) -> None:
    """Print what ``submit`` would do."""
    for job in jobs:
        call = shlex.join(job.call([f"<{name}>" for name in job.after]))
        click.echo(f"OVTRAIN_SETUP={shlex.quote(str(job.setup))} {call}")
    told: dict[str, list[str]] = {}
    for job in jobs:
        files = told.setdefault(setup_lines(job.site).rstrip(), [])
        files += [path for path in [str(job.setup)] if path not in files]
    for lines, files in told.items():
        click.echo(f"# {', '.join(files)}\n{lines}", err=True)


def _log(job: Job, number: str) -> str:
    pattern = job.options["output"]
    return pattern.replace("%%", "%").replace("%j", number).replace("%A", number).replace("%a", "*")


def _prepare(job: Job) -> None:
    (job.out / "logs").mkdir(parents=True, exist_ok=True)
    for path, text in {**job.writes, job.setup: setup_lines(job.site)}.items():
        with atomic_open(path, "w") as handle:
            handle.write(text)
