"""A process that may die: a task that crashes, hangs or swells it costs that task and is named.

``concurrent.futures`` cannot do this: one dead worker breaks its whole pool without telling whose
fault it was. Here a child handles one task at a time, so its death is the fault of a known task.
Nor can ``multiprocessing``, whose children import their parent's main module: that of a training
run is seconds and hundreds of MiB. These import what their work needs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from ovtrain.schema.errors import OvtrainError

DIED = "worker process died"
TIMED_OUT = "timed out"
OUT_OF_MEMORY = "out of memory"
HEAP = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""For glibc. By itself it raises the size from which blocks are mapped apart, and the heap of a
process that lives for days, full of blocks of all sizes, grows by megabytes an hour."""
TRACEBACK = 1
"""Exit status of a Python that ended by an exception."""
STOP_S = 5.0
"""A child that is asked to end is killed after this time; one that does not die of that, since
storage does not answer it, is left behind after as long again."""
START_S = 300.0
"""A child whose imports take longer is killed."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Failure:
    """Why a task has no result: a category, then details in parentheses. ``lost``: the child was
    killed from outside (for lack of memory, by an operator): the task may not be at fault.
    ``defect``: the child ended by an error that no bad task may raise, ours that is."""

    reason: str
    lost: bool = False
    defect: bool = False

    @property
    def category(self) -> str:
        return category(self.reason)


def category(reason: str) -> str:
    """The reason without its details."""
    return reason.split(" (")[0]


def reason_of(error: BaseException) -> str:
    """The reason without the file's name, which stands beside it in reports."""
    if isinstance(error, OvtrainError):
        return error.found or error.where
    return f"unreadable ({error})"


class Child:
    """A spawned process that runs ``work``, started by the first task.

    ``bad``: errors that a bad task may raise and that become a Failure; any other is a defect, and
    its traceback ends the child. ``timeout_s`` per task, from when it is sent; a new child's
    imports do not count. ``memory_mib`` bounds the data of the child (RLIMIT_DATA; 0 = no bound):
    beyond it allocations fail, which is a Failure, too. ``starts``: processes so far; ``tasks``: of
    the present one.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        bad: tuple[type[Exception], ...],
        timeout_s: float,
        memory_mib: int = 0,
    ) -> None:
        self._arguments = pickle.dumps((os.getpid(), work, bad, memory_mib))
        self.timeout_s = timeout_s
        self.deadline = float("inf")
        self.starts = self.tasks = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._ready = self._ending = False

    def start(self) -> Connection:
        """Have a process, without waiting for its imports. The connection is readable when there is
        an answer to ``receive``, or no process any more."""
        if self._connection is None:
            ours, theirs = socket.socketpair()
            paths = map(os.path.abspath, sys.path)
            code = f"from ovtrain.schema.isolated import serve; serve({theirs.fileno()})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                env={**HEAP, **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
            theirs.close()
            ours = Connection(ours.detach())
            with suppress(BrokenPipeError, ConnectionResetError):  # ``receive`` reports that
                ours.send_bytes(self._arguments)
            self._connection, self._ready = ours, False
            self.starts, self.tasks = self.starts + 1, 0
        return self._connection

    def send(self, task: Any) -> None:
        """Hand a task over, once the imports are done; its time begins."""
        connection = self.start()
        with suppress(EOFError, ConnectionResetError):  # it died: ``receive`` reports that
            if not self._ready:
                if not connection.poll(START_S) and self._process is not None:
                    self._process.kill()
                connection.recv()
                self._ready = True
        self.deadline = time.monotonic() + self.timeout_s
        self.tasks += 1
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(task)

    def receive(self) -> Any:
        """The task's result, or a Failure; waits until there is one or the time is over. After a
        failure that cost the process the next task gets a new one."""
        connection = self.start()
        if not connection.poll(max(self.deadline - time.monotonic(), 0)):
            return self._timed_out()
        try:
            return _receive(connection, self.deadline)
        except TimeoutError:
            return self._timed_out()
        except (EOFError, ConnectionResetError):
            code = self.stop()
            reason = f"{DIED} (exit code {code})"
            return Failure(reason, lost=code == -signal.SIGKILL, defect=code == TRACEBACK)

    def _timed_out(self) -> Failure:
        self.stop(kill=True)
        return Failure(f"{TIMED_OUT} (more than {self.timeout_s:g} s)")

    def call(self, task: Any) -> Any:
        """``send`` and ``receive``; a task whose child was killed from outside is tried twice."""
        self.send(task)
        answer = self.receive()
        if isinstance(answer, Failure) and answer.lost and not self._ending:
            self.send(task)
            answer = self.receive()
        return answer

    def end(self) -> None:
        """Kill the process, from another thread than the one that waits for its answer, which then
        gets a Failure."""
        self._ending, process = True, self._process
        if process is not None:
            process.kill()

    def resident_mib(self) -> float:
        """Memory that the process holds now; 0 without one."""
        if self._process is None:
            return 0.0
        with suppress(OSError), open(f"/proc/{self._process.pid}/statm") as handle:
            return int(handle.read().split()[1]) * resource.getpagesize() / 2**20
        return 0.0

    def stop(self, *, kill: bool = False) -> int:
        """End the process, whose task is lost; its exit status."""
        process, connection = self._process, self._connection
        self._process, self._connection = None, None
        if connection is not None:
            connection.close()  # which a child that waits for a task takes for the end
        if process is None:
            return 0
        if not kill:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(STOP_S)
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(STOP_S)
        return -signal.SIGKILL


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its ``parent`` dies (Linux): one that hangs, or that
    has a session of its own, would outlive it."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def serve(descriptor: int) -> None:
    """Body of a child: answer tasks until the other end closes."""
    # A scheduler signals every process of a job; what to do about it is the parent's to decide.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        parent, work, bad, memory_mib = pickle.loads(connection.recv_bytes())
        die_with(parent)
        if memory_mib:
            limit = memory_mib * 2**20
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        connection.send(None)
        while True:
            task = connection.recv()
            _send(connection, _answer(work, task, bad, memory_mib))


def _answer(
    work: Callable[[Any], Any], task: Any, bad: tuple[type[Exception], ...], memory_mib: int
) -> Any:
    try:
        return work(task)
    except (MemoryError, OSError, *bad) as error:
        if starved(error):
            return Failure(f"{OUT_OF_MEMORY} (more than {memory_mib} MiB)")
        if isinstance(error, bad):
            return Failure(reason_of(error))
        raise


def starved(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a lack of memory."""
    if error is None:
        return False
    if isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM:
        return True
    return starved(error.__cause__)


def _send(connection: Connection, answer: Any) -> None:
    """Arrays go from their own memory into the socket: pickled they would be copied three times on
    their way, which costs a clip's patches more than gathering them."""
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append)
    parts = [buffer.raw() for buffer in buffers]
    connection.send_bytes(pickle.dumps(([part.nbytes for part in parts], message)))
    for part in parts:
        while part:
            part = part[os.write(connection.fileno(), part) :]


def _receive(connection: Connection, deadline: float) -> Any:
    """What ``_send`` sent. Raises EOFError, ConnectionResetError, TimeoutError."""
    sizes, message = pickle.loads(connection.recv_bytes())
    return pickle.loads(message, buffers=[_filled(connection, size, deadline) for size in sizes])


def _filled(connection: Connection, size: int, deadline: float) -> npt.NDArray[np.uint8]:
    """The next ``size`` bytes."""
    data = np.empty(size, np.uint8)
    rest = data.data
    while rest:
        if not connection.poll(max(deadline - time.monotonic(), 0)):
            raise TimeoutError
        count = os.readv(connection.fileno(), [rest])
        if not count:
            raise EOFError
        rest = rest[count:]
    return data
