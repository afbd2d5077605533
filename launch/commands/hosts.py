"""launch hosts: train on hosts that ssh reaches, without a scheduler."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from launch.commands.options import load_training, nproc_option, overrides, write_resolved


@click.command()
@click.argument("config")
@overrides
@click.option("--hosts", "given", required=True, help="A file of hosts, or host1,host2.")
@nproc_option
@click.option("--ssh", help="How a host is reached; '': everything runs on this machine.")
@click.option("--python", default=sys.executable, help="The interpreter on every host.")
@click.option("--master-addr", default="", help="Of the rendezvous, if not the first host's name.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0: one that is free there.")
@click.option("--env", multiple=True, metavar="NAME[=VALUE]", help="A variable for all hosts.")
@click.option("--restarts", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--dry-run", is_flag=True, help="Print what would run on each host.")
def hosts(
    config: str,
    overrides: tuple[str, ...],
    given: str,
    nproc: int,
    ssh: str | None,
    python: str,
    master_addr: str,
    port: int,
    env: tuple[str, ...],
    restarts: int,
    dry_run: bool,
) -> int:
    """Train CONFIG on several hosts, --nproc processes on each.

    The hosts share a file system: config, data, run.out and the interpreter lie under the same
    paths. The first one that fails ends all; --restarts starts them again from the newest
    checkpoint. Ctrl-C saves once and ends with status 75."""
    from launch import hosts as plain
    from launch.preflight import preflight

    resolved = load_training(config, overrides)
    where = plain.Hosts(
        plain.read_hosts(given, nproc),
        nproc,
        shlex.split(plain.SSH if ssh is None else ssh),
        python,
        master_addr,
        port,
        plain.passed_env(env, os.environ),
    )
    found = preflight(resolved, where.world, per_node=nproc)
    found.check(config, allow_missing_data=dry_run)
    for note in found.notes:
        click.echo(f"preflight    {note}", err=True)
    out = Path(resolved.run.out)
    path = out / "launch.yaml"

    def command(number: int, master: str) -> list[str]:
        return plain.node_command(python, path, len(where.names), number, nproc, master)

    if dry_run:
        for problem in found.data:
            click.echo(f"not found yet  {problem}", err=True)
        click.echo(plain.dry_run(where, command))
        return 0
    write_resolved(resolved, path)
    return plain.run_on_hosts(where, command, out, restarts)
