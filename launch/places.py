"""Which ranks a process of a job starts, and what they are told of it."""

from __future__ import annotations

import argparse
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from launch.processes import worker_env
from ovtrain.schema.errors import ConfigError

SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Place:
    """The ranks that this process starts, ``first`` and ``count`` of ``world``; ``local``: the
    first one's place on its node."""

    first: int
    count: int
    local: int
    world: int
    nodes: int
    master: str
    port: int

    def environment(self, rank: int) -> dict[str, str]:
        """What ``torch.distributed`` wants to hear."""
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(self.local + rank - self.first),
            "LOCAL_WORLD_SIZE": str(self.world // self.nodes),
            "WORLD_SIZE": str(self.world),
            "MASTER_ADDR": self.master,
            "MASTER_PORT": str(self.port),
        }


def slurm_place(env: Mapping[str, str]) -> Place:
    """Of a task of a SLURM step. Raises ConfigError outside one."""
    try:
        nodes, node = int(env["SLURM_NNODES"]), int(env["SLURM_NODEID"])
        tasks, task, local = (int(env[f"SLURM_{x}"]) for x in ("NTASKS", "PROCID", "LOCALID"))
        master, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    except KeyError as missing:
        raise ConfigError(
            str(missing).strip("'"),
            "not set, so the place of this process is not known",
            fix="start it by srun from slurm/pretrain.sbatch, or give --nodes, --node-rank, "
            "--nproc and --master",
        ) from missing
    if tasks > nodes:
        return Place(task, 1, local, tasks, nodes, master, port)
    nproc = int(env.get("OVTRAIN_NPROC") or env.get("SLURM_GPUS_ON_NODE") or 1)
    return Place(node * nproc, nproc, 0, nodes * nproc, nodes, master, port)


def place_of(given: argparse.Namespace, env: Mapping[str, str]) -> Place:
    """From the options, else from SLURM. Raises ConfigError."""
    options = (given.nodes, given.node_rank, given.nproc, given.master)
    if all(option is None for option in options):
        return slurm_place(env)
    if any(option is None for option in options):
        raise ConfigError(
            "--nodes, --node-rank, --nproc, --master", "only some given", fix="give all"
        )
    address, _, port = given.master.rpartition(":")
    if not address or not port.isdigit():
        raise ConfigError(f"--master {given.master}", "no port", allowed="ADDRESS:PORT")
    nproc, world = given.nproc, given.nodes * given.nproc
    return Place(
        given.node_rank * nproc, nproc, 0, world, given.nodes, address.strip("[]"), int(port)
    )


def rank_environment(place: Place, env: Mapping[str, str]) -> dict[str, str]:
    """What all ranks of a node are given; what is set already stays."""
    made = worker_env(place.count, env)
    # gloo asks for the host's own name, which need not resolve on a compute node.
    if interface := interface_towards(place.master):
        made.setdefault("GLOO_SOCKET_IFNAME", interface)
    return made


def interface_towards(host: str) -> str:
    """Name of the network interface by which this host reaches ``host`` (Linux). "" where the
    system does not tell, ``host`` has no IPv4 address, or this host calls itself by a loopback
    address, by which no other one can reach it."""
    if not sys.platform.startswith("linux"):
        return ""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing: it only chooses a route
            own = probe.getsockname()[0]
    except OSError:
        return ""
    if own.startswith("127.") and not host.startswith("127."):
        return ""
    named = [name for _, name in socket.if_nameindex() if _address(name) == own]
    return named[0] if named else ""


def _address(interface: str) -> str:
    """IPv4 address of an interface, "" where it has none."""
    import fcntl

    asked = struct.pack("256s", interface.encode()[:15])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            told = fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, asked)
    except OSError:
        return ""
    return socket.inet_ntoa(told[20:24])
