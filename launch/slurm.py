"""Renders and submits the sbatch call of a training run. All ``#SBATCH`` lines live in ``slurm/``.

What is passed here overrides them: size, partition, limit, where logs go. A site's variables and
setup lines go into ``{run.out}/logs/setup.sh``, which the job sources on every node (values with
commas would not survive ``--export``).
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import click

from launch.commands.options import write_resolved
from launch.preflight import preflight
from ovtrain.config.load import checked, data_folder, find_config, load
from ovtrain.config.site import SiteConfig
from ovtrain.config.train import TrainConfig
from ovtrain.schema.errors import ConfigError

PRETRAIN = "pretrain.sbatch"
SETUP = Path("logs") / "setup.sh"


def load_site(name: str | None, **given: str | int | None) -> SiteConfig:
    """A site's values, with those ``given`` (not None) in their place. Raises ConfigError."""
    site = load(SiteConfig, find_config(name) if name else None)
    site = replace(site, **{key: value for key, value in given.items() if value is not None})
    checked(name or "command line", site)
    return site


def setup_lines(site: SiteConfig) -> str:
    """The shell file a node sources first; "" where the site asks for nothing."""
    exports = [f"export {key}={shlex.quote(value)}" for key, value in sorted(site.env.items())]
    return "\n".join([*exports, *([site.setup.rstrip()] if site.setup else [])])


def sbatch_arguments(config: TrainConfig, resolved: Path, site: SiteConfig) -> list[str]:
    """The whole call, first word ``sbatch``."""
    out = Path(config.run.out)
    setup = f",OVTRAIN_SETUP={out / SETUP}" if setup_lines(site) else ""
    options = {
        "job-name": out.name,
        "nodes": str(site.nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(site.gpus_per_node) if site.gpus_per_node else "",
        "cpus-per-task": str(site.cpus_per_gpu * max(site.gpus_per_node, 1)),
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "time": site.time,
        "output": str(out / "logs" / "slurm-%j.out"),
        "export": f"ALL{setup}",
    }
    flags = [f"--{key}={value}" for key, value in options.items() if value]
    return ["sbatch", *flags, str(data_folder("slurm") / PRETRAIN), str(resolved)]


def submit(config: TrainConfig, name: str, site: SiteConfig, *, dry_run: bool) -> int:
    """Print the call, or write the resolved config and submit. Raises ConfigError."""
    found = preflight(config, site.nodes * max(site.gpus_per_node, 1))
    found.check(name, allow_missing_data=dry_run)
    out = Path(config.run.out)
    call = sbatch_arguments(config, out / "launch.yaml", site)
    if dry_run:
        for problem in found.data:
            click.echo(f"not found yet  {problem}", err=True)
        click.echo(shlex.join(call))
        return 0
    if shutil.which("sbatch") is None:
        raise ConfigError("sbatch", "no such command here", fix="run this on a SLURM login node")
    write_resolved(config, out / "launch.yaml")
    (out / "logs").mkdir(parents=True, exist_ok=True)
    if lines := setup_lines(site):
        (out / SETUP).write_text(lines + "\n")
    return subprocess.run(call, check=False).returncode
