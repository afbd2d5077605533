"""Starts of training as processes that can be watched, signalled, ended: by way of the zygote, or
the real command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.helpers.ports import free_port
from tests.helpers.world import ROOT, environment

LOOK_S = 0.002
READY_S, END_S = 120.0, 30.0
"""For the zygote's imports; for killed processes to be gone."""


class Job:
    """A start: ``pid`` leads its process group; ``output``: all that it showed; ``began``: before
    it was started; ``due``: the step from which it has to go on; ``firsts``: from which it did,
    nothing where it did not come so far; ``last``: the last step that it logged, 0 without one."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid, self.output, self.began = pid, output, 0.0
        self.due, self.firsts, self.last = 0, list[int](), 0

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        raise NotImplementedError

    def wait(self, seconds: float) -> int | None:
        """The exit status; None where it has not ended in time."""
        ends = time.monotonic() + seconds
        while (status := self.poll()) is None and time.monotonic() < ends:
            time.sleep(LOOK_S)
        return status

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self) -> None:
        """Nothing of it is left: its ranks have sessions of their own, and die with it."""
        below = descendants(self.pid)
        for pid in (self.pid, *below):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait(END_S)
        ends = time.monotonic() + END_S
        while any(lives(pid) for pid in below) and time.monotonic() < ends:
            time.sleep(LOOK_S)

    def ranks(self) -> dict[int, int]:
        """{rank: pid} of those that are there."""
        named = {pid: _name(pid) for pid in children(self.pid)}
        return {
            int(name.removeprefix("rank-")): pid
            for pid, name in named.items()
            if name.startswith("rank-")
        }

    def shown(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


class Command(Job):
    """The real one, as a user calls it."""

    def __init__(self, command: Sequence[str], output: Path) -> None:
        with open(output, "ab") as handle:
            self._process = subprocess.Popen(
                command, env=environment(), start_new_session=True, stdout=handle, stderr=handle
            )
        super().__init__(self._process.pid, output)

    def poll(self) -> int | None:
        return self._process.poll()


class Forked(Job):
    def __init__(self, zygote: Zygote, number: int, pid: int, output: Path) -> None:
        super().__init__(pid, output)
        self._zygote, self._number = zygote, number

    def poll(self) -> int | None:
        return self._zygote.status(self._number)


class Zygote:
    """Starts nodes; see zygote.py."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        paths = os.pathsep.join((str(ROOT / "benchmarks"), str(ROOT)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.zygote", str(theirs.fileno())],
            env={**environment(), "PYTHONPATH": paths},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._channel, self._unread = ours, b""
        self._pids, self._statuses = dict[int, int](), dict[int, int]()
        self._asked, self._ready = 0, False
        self._until(lambda: self._ready)

    def start(
        self,
        config: Path,
        output: Path,
        *,
        processes: int = 2,
        nodes: int = 1,
        port: int = 0,
        env: Mapping[str, str],
    ) -> Forked:
        """``python -m launch.node CONFIG`` of the first of ``nodes``, each of ``processes``."""
        place = {"nodes": nodes, "node-rank": 0, "nproc": processes}
        argv = [str(config), *(text for k, v in place.items() for text in (f"--{k}", str(v)))]
        argv += ["--master", f"127.0.0.1:{port or free_port()}"]
        self._asked += 1
        number = self._asked
        asked = {"id": number, "argv": argv, "env": dict(env), "output": str(output)}
        self._channel.settimeout(READY_S)
        self._channel.sendall(json.dumps(asked).encode() + b"\n")
        self._until(lambda: number in self._pids)
        return Forked(self, number, self._pids[number], output)

    def status(self, number: int) -> int | None:
        self._read(0)
        return self._statuses.get(number)

    def close(self) -> None:
        self._channel.close()
        self._process.wait()

    def _until(self, told: Callable[[], bool]) -> None:
        ends = time.monotonic() + READY_S
        while not told():
            if self._process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"the zygote does not answer, status {self._process.poll()}")
            self._read(0.05)

    def _read(self, seconds: float) -> None:
        self._channel.settimeout(seconds or 1e-6)
        with suppress(TimeoutError):
            received = self._channel.recv(65536)
            if not received:
                raise RuntimeError("the zygote has ended")
            self._unread += received
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            told = json.loads(line)
            self._ready |= "ready" in told
            if "pid" in told:
                self._pids[told["id"]] = told["pid"]
            if "status" in told:
                self._statuses[told["id"]] = told["status"]


def children(pid: int) -> list[int]:
    found = list[int]()
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{task}/children").read_text()
            found += [int(child) for child in text.split()]
    return found


def descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *descendants(child))]


def lives(pid: int) -> bool:
    """Whether it has memory, as the dead that wait for their parent have not."""
    with suppress(OSError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def is_worker(pid: int) -> bool:
    """Whether it is a loader's."""
    with suppress(OSError):
        return b"isolated" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def rank_of(pid: int) -> int:
    """RANK in a process's environment, -1 without one."""
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                return int(entry[5:])
    return -1
