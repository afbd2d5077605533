"""A real SLURM on this machine: one controller, several node daemons that pretend to have 8 CPUs.

``Lab`` is a context manager. It needs Debian's ``slurm-wlm`` and ``munge`` and root; everything it
writes lies in one folder, and the daemons that it started end with it.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue", "scancel")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE")
CONFIG = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmctldParameters=node_reg_mem_percent=0,preempt_send_user_signal
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
KillWait=5
MinJobAge=3600
{nodes}
PartitionName=train Nodes=ALL Default=YES PriorityTier=10 PreemptMode=REQUEUE GraceTime=60 \
MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=100 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no lab here; "" where there can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} here (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "the daemons need root"


class Lab:
    """``nodes``: n1, n2, ... Raises AssertionError where a daemon does not come up in time."""

    def __init__(self, folder: Path, nodes: int = 3) -> None:
        self.folder, self.names = folder, [f"n{i + 1}" for i in range(nodes)]
        self.conf = folder / "slurm.conf"
        self.env = {"SLURM_CONF": str(self.conf)}
        self._munged = False

    def __enter__(self) -> Lab:
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        ports = _free_ports(len(self.names) + 1)
        host = socket.gethostname().split(".")[0]
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 "
            "RealMemory=16000 State=UNKNOWN"
            for name, port in zip(self.names, ports[1:], strict=True)
        ]
        nodes = "\n".join(lines)
        self.conf.write_text(
            CONFIG.format(host=host, port=ports[0], folder=self.folder, nodes=nodes)
        )
        self._start_munge()
        self._daemon("slurmctld", "-c")
        for name in self.names:
            (self.folder / "spool" / name).mkdir()
            self._daemon("slurmd", "-N", name)
        self.wait_for(lambda: self._idle() == len(self.names), 30, "the nodes to be idle")
        return self

    def __exit__(self, *_: object) -> None:
        self.call("scancel", "--signal=KILL", "--full", *self._running(), check=False)
        self.call("scancel", *self._running(), check=False)
        for path in [*self.folder.glob("slurmd-*.pid"), self.folder / "slurmctld.pid"]:
            _stop(path)
        if self._munged:
            _stop(Path("/run/munge/munged.pid"))

    def call(self, *command: str, check: bool = True) -> str:
        """A SLURM command's output."""
        done = subprocess.run(
            command, env=os.environ | self.env, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def submit(self, *arguments: str, **env: str) -> str:
        """``sbatch``'s job id."""
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments], env=os.environ | self.env | env,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """``scontrol show job`` as a mapping, of the first task where it is an array."""
        shown = self.call("scontrol", "show", "job", job)
        return dict(re.findall(r"(\w+)=(\S*)", shown.split("\n\n")[0]))

    def state(self, job: str) -> str:
        return self.job(job)["JobState"]

    def states(self, job: str) -> list[str]:
        """Of every task of an array."""
        return re.findall(r"JobState=(\S+)", self.call("scontrol", "show", "job", job))

    def wait_end(self, job: str, seconds: float) -> str:
        """The state in which it ended; an array's when all tasks have ended, sorted, without
        doubles."""

        def ended() -> bool:
            return all(state in ENDED for state in self.states(job))

        self.wait_for(ended, seconds, f"job {job} to end")
        return " ".join(sorted(set(self.states(job))))

    def wait_for(self, true: Callable[[], bool], seconds: float, what: str) -> float:
        """Seconds until ``true()``."""
        began = time.monotonic()
        while not true():
            assert time.monotonic() - began < seconds, (
                f"waited {seconds} s for {what}\n{self._log()}"
            )
            time.sleep(0.2)
        return time.monotonic() - began

    def _idle(self) -> int:
        return (
            self.call("sinfo", "-h", "-N", "-p", "train", "-o", "%t", check=False)
            .split()
            .count("idle")
        )

    def _running(self) -> list[str]:
        return self.call("squeue", "-h", "-o", "%A", check=False).split()

    def _log(self) -> str:
        log = self.folder / "slurmctld.log"
        tail = log.read_text()[-3000:] if log.exists() else ""
        return self.call("squeue", check=False) + "\n" + tail

    def _start_munge(self) -> None:
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
            return
        if not Path("/etc/munge/munge.key").exists():
            subprocess.run(["mungekey", "--create"], check=True)
        munge = pwd.getpwnam("munge")
        Path("/run/munge").mkdir(exist_ok=True)
        os.chown("/run/munge", munge.pw_uid, munge.pw_gid)
        subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)
        self._munged = True
        munged = lambda: subprocess.run(["munge", "-n"], capture_output=True, check=False)  # noqa: E731
        self.wait_for(lambda: munged().returncode == 0, 10, "munged")

    def _daemon(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [name, "-f", str(self.conf), *arguments], check=True, env=os.environ | self.env
        )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _stop(pid_file: Path) -> None:
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return
    for _ in range(50):
        time.sleep(0.1)
        if not Path(f"/proc/{pid}").exists():
            return
    os.kill(pid, signal.SIGKILL)
