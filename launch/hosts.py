"""Training on hosts without a scheduler, reached through ssh: ``ovtrain launch hosts``.

All of them see one file system: the config, the data and ``run.out`` under the same paths, and an
interpreter with ovtrain. What is said goes through ssh's input, not on a command line.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from launch.fleet import Fleet, Job
from launch.local import Relay, failure
from ovtrain.schema.errors import ConfigError

SSH = "ssh -o BatchMode=yes -o ServerAliveInterval=15"
PASSED = ("NCCL_", "GLOO_", "OMP_", "MKL_", "CUDA_", "TORCH_", "PYTORCH_", "OVTRAIN_")
"""Variables with these beginnings are the same on all hosts."""
PASSED_NAMES = ("PYTHONPATH", "LD_LIBRARY_PATH", "WANDB_MODE")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
FREE_PORT = "import socket; s = socket.socket(); s.bind(('', 0)); print('port', s.getsockname()[1])"


def read_hosts(given: str, nproc: int) -> list[str]:
    """Names, from a file (a host per line, ``name [processes]``, # begins a comment) or from a
    comma-separated list. Raises ConfigError."""
    path = Path(given)
    if path.is_file():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError as error:
            raise ConfigError(given, "is not text", allowed="a host per line") from error
        entries = [(f"{given}, line {i}", text) for i, text in enumerate(lines, 1)]
    elif "/" in given:
        raise ConfigError(given, "no such hosts file", allowed="a file, or host1,host2")
    else:
        entries = [(f"--hosts {given}", text) for text in given.split(",")]
    hosts = [_host(where, words, nproc) for where, text in entries if (words := _words(text))]
    if not hosts:
        raise ConfigError(given, "names no host", allowed="a host per line, or host1,host2")
    for name in hosts:
        if hosts.count(name) > 1:
            raise ConfigError(given, f"names {name} twice", fix="give it more --nproc instead")
    return hosts


def _words(text: str) -> list[str]:
    return text.split("#", 1)[0].split()


def _host(where: str, words: Sequence[str], nproc: int) -> str:
    name, *rest = words
    if len(rest) > 1 or (rest and not rest[0].isdigit()) or name.startswith("-"):
        raise ConfigError(where, f"'{' '.join(words)}'", allowed="HOST or HOST PROCESSES")
    if rest and int(rest[0]) != nproc:
        raise ConfigError(
            where,
            f"{rest[0]} processes on {name}",
            allowed=f"{nproc} (--nproc): the same on all hosts",
            fix="set --nproc, or leave the host out",
        )
    return name


def passed_env(names: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
    """Variables for all hosts: PASSED, and ``names``: NAME or NAME=VALUE. Raises ConfigError."""
    made = {k: v for k, v in env.items() if k.startswith(PASSED) or k in PASSED_NAMES}
    for entry in names:
        name, given, value = entry.partition("=")
        if not given and name not in env:
            raise ConfigError(f"--env {name}", "is not set here", allowed="NAME or NAME=VALUE")
        made[name] = value if given else env[name]
    return made | {"PYTHONUNBUFFERED": "1"}


def node_command(
    python: str, config: Path, nodes: int, node_rank: int, nproc: int, master: str
) -> list[str]:
    """What runs on each host: its ranks, one process each."""
    words = ["--nodes", str(nodes), "--node-rank", str(node_rank), "--nproc", str(nproc)]
    return [python, "-m", "launch.node", str(config), *words, "--master", master]


@dataclass(frozen=True)
class Hosts:
    """How to reach the hosts. ``ssh``: the words before host and command; none: everything runs
    here. ``address``, ``port``: of the rendezvous, "" and 0 for the first host's."""

    names: Sequence[str]
    nproc: int
    ssh: Sequence[str]
    python: str = sys.executable
    address: str = ""
    port: int = 0
    env: Mapping[str, str] | None = None

    @property
    def world(self) -> int:
        return len(self.names) * self.nproc

    def call(self, host: str, words: Sequence[str]) -> list[str]:
        """Run ``words`` on ``host``, in this folder."""
        path = os.environ.get("PYTHONPATH")
        first = ["env", f"PYTHONPATH={path}"] if path else []
        line = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join([*first, *words])}"
        return [*self.ssh, host, line] if self.ssh else ["bash", "-c", line]

    def master(self) -> str:
        """ADDRESS:PORT. Raises ConfigError where no other host can reach it."""
        address = self.address or self.names[0].rpartition("@")[2]
        if address in LOCAL_NAMES and self.ssh and len(self.names) > 1 and not self.address:
            raise ConfigError(
                f"--hosts {','.join(self.names)}",
                f"other hosts cannot reach {address}",
                fix="name the first host by its address, or give --master-addr",
            )
        return f"{address}:{self.port or self._free_port()}"

    def _free_port(self) -> int:
        """Asked on the first host, which shows early whether it can be reached at all."""
        first = self.names[0]
        call = self.call(first, [self.python, "-c", FREE_PORT])
        done = subprocess.run(
            call, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        said = [line for line in done.stdout.splitlines() if line.startswith("port ")]
        if done.returncode or not said:
            why = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
            raise ConfigError(
                f"host {first}",
                f"cannot run {self.python} ({why[0]})",
                fix=f"try: {shlex.join(call[:-1])} true",
            )
        return int(said[-1].split()[1])

    def jobs(self, command: Callable[[int, str], list[str]], master: str) -> list[Job]:
        """``command``: of a host's number and the rendezvous."""
        leash = [self.python, "-m", "launch.leash"]
        return [
            Job(
                name,
                self.call(name, leash),
                command(number, master),
                {**(self.env or {}), "OVTRAIN_HOST": name},
                os.getcwd(),
            )
            for number, name in enumerate(self.names)
        ]


def run_on_hosts(
    hosts: Hosts, command: Callable[[int, str], list[str]], out: Path, restarts: int = 0
) -> int:
    """Run ``command`` on all hosts, their output in ``out/logs/launch.log``, too; the exit status.

    A job that failed is started again up to ``restarts`` times, but not after an error of the
    input (status 2) or a signal.
    """
    log = out / "logs" / "launch.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for left in range(restarts, -1, -1):
        with open(log, "a") as handle:
            relay = Relay(handle, lambda line: click.echo(line, err=True))
            fleet = Fleet(hosts.jobs(command, hosts.master()), relay)
            outcome = fleet.run()
        if outcome.status == 0:
            return 0
        click.echo(failure(outcome, log), err=True)
        if outcome.status == 2 or fleet.received is not None or not left:
            return outcome.status
        click.echo(f"starting again; restarts left after this one: {left - 1}", err=True)
    raise AssertionError("the last attempt returns")


def dry_run(hosts: Hosts, command: Callable[[int, str], list[str]]) -> str:
    """What would run, and where; nothing is started."""
    address = hosts.address or hosts.names[0].rpartition("@")[2]
    jobs = hosts.jobs(command, f"{address}:{hosts.port or 'PORT'}")
    lines = [f"{shlex.join(job.call)}\n  runs {shlex.join(job.command)}" for job in jobs]
    names = ", ".join(sorted(hosts.env or ())) or "none"
    return "\n".join([*lines, f"variables for all hosts: {names}"])
