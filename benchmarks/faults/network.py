"""Connections between ranks: closed, delayed, losing packets, silent; and those never made.

From outside, through the ranks' own sockets: pidfd_getfd(2) gives a second handle of one, by which
it can be shut down, or given a socket filter that drops what arrives (socket(7),
SO_ATTACH_FILTER): TCP then sends again, as after a loss on a wire.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from tests.helpers.ports import free_port

from .case import Case
from .fault import FAILED, FINISHED, REFUSED, SOCKETS, Fault
from .process import HUNG, QUICK, kill_all_after, patient
from .site import TENSOR

SYS_PIDFD_GETFD = 438
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
Instruction = tuple[int, int, int, int]
DROP: tuple[Instruction, ...] = ((0x06, 0, 0, 0),)
"""ret 0"""
LOSS = 0.15
RANDOM = 0xFFFFF000 + 56
LOSE: tuple[Instruction, ...] = (
    (0x20, 0, 0, RANDOM),  # ld random
    (0x35, 1, 0, int(LOSS * 2**32)),  # jge: keep
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)
BROKEN = (
    r"error: rank \d on \S+: .*"
    r"(Connection (closed by peer|reset)|Broken pipe|closed the connection)"
)
SENT_AGAIN = struct.Struct("100xI")
"""tcpi_total_retrans of TCP_INFO (tcp(7)): segments that a connection had to send again."""
SETTLED_S = 3.0
"""By then whoever missed something has sent it again."""
RENDEZVOUS_S, LONG_STEP_S = 4, 0.4


def sockets(pid: int) -> Iterator[socket.socket]:
    """Second handles of the TCP connections of a process. Raises ProcessLookupError where it has
    ended, PermissionError where this process may not (Linux asks for the right to trace it)."""
    process = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            handle = _taken(process, int(name)) if _is_socket(pid, name) else -1
            if handle >= 0 and _connected(found := socket.socket(fileno=handle)):
                yield found
    finally:
        os.close(process)


def _is_socket(pid: int, name: str) -> bool:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    return False


def _taken(process: int, number: int) -> int:
    """A second handle of a file of a process; -1 where it was closed meanwhile."""
    handle = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, process, number, 0)
    code = ctypes.get_errno()
    if handle < 0 and code not in (errno.EBADF, errno.ESRCH):
        raise OSError(code, f"pidfd_getfd is refused ({os.strerror(code)})")
    return handle


def may_take_sockets() -> bool:
    """Whether this process may of those that it has started."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
        subprocess.Popen(["sleep", "9"], stdin=ours.fileno()) as child,
    ):
        try:
            found = list(sockets(child.pid))
        except OSError:
            return False
        finally:
            child.kill()
        for one in found:
            one.close()
        return bool(found)


def _connected(found: socket.socket) -> bool:
    if found.family not in (socket.AF_INET, socket.AF_INET6):
        found.close()
        return False
    try:
        found.getpeername()
    except OSError:
        found.close()
        return False
    return True


def attach(found: socket.socket, program: tuple[Instruction, ...]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    given = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    found.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, given)


def detach(found: socket.socket) -> None:
    with suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _all(pid: int) -> list[socket.socket]:
    """``sockets``; none of a process that has ended."""
    with suppress(ProcessLookupError):
        return list(sockets(pid))
    return []


def _of_a_rank(case: Case, share: float = 1.0) -> list[socket.socket]:
    """Handles of a random rank's connections, one at least."""
    found = _all(case.some_rank())
    picked = [one for one in found if case.random.random() < share]
    if not found:  # it has left the others
        case.over()
    return picked or found[:1]


def _met(case: Case) -> None:
    """A start that trains to its end did not need what was broken: it is done again."""
    if case.job.wait(case.fault.bound_s) == FINISHED:
        case.over()


def _closed(case: Case, share: float) -> None:
    case.moment(early=False)
    for one in _of_a_rank(case, share):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
    _met(case)


def _sent_again(found: Sequence[socket.socket]) -> int:
    read = [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SENT_AGAIN.size) for one in found]
    return sum(SENT_AGAIN.unpack(info)[0] for info in read)


def _filtered(case: Case, program: tuple[Instruction, ...], least_s: float, most_s: float) -> None:
    """What arrives at a rank is dropped, for so long. A start in which nothing had to be sent again
    has not met its fault, and is done again."""
    case.moment(early=False, least=2)
    found = _of_a_rank(case)
    every = [one for pid in case.job_ranks().values() for one in _all(pid)]
    before = _sent_again(every)
    for one in found:
        attach(one, program)
    time.sleep(case.random.uniform(least_s, most_s))
    for one in found:
        detach(one)
    ends = time.monotonic() + SETTLED_S
    while not (again := _sent_again(every) - before) and time.monotonic() < ends:
        time.sleep(0.05)
    for one in (*found, *every):
        one.close()
    if not again:
        case.over()


def _silent(case: Case) -> None:
    case.moment(early=False, least=2)
    for one in _of_a_rank(case):
        attach(one, DROP)
        one.close()
    _met(case)


def _port_taken(case: Case) -> None:
    """Somebody else listens where the ranks are to meet. In place of the first start."""
    taken = socket.create_server(("127.0.0.1", free_port()))
    case.facts["port"] = taken.getsockname()[1]
    case.cleanups.append(taken.close)
    case.job.end()
    case.jobs.clear()
    case.begin(hooked=False, port=taken.getsockname()[1])
    case.note()


def _alone(case: Case) -> None:
    """The other node never comes. In place of the first start."""
    case.job.end()
    case.hook = {"name": "short_rendezvous", "rank": -1, "seconds": RENDEZVOUS_S}
    case.jobs.clear()
    case.begin(hooked=True, processes=1, nodes=2)
    case.note()


def _long(case: Case) -> None:
    case.hook = {"name": "slow", "rank": -1, "step": 0, "seconds": LONG_STEP_S}


def _second_writer(case: Case) -> None:
    """The same command, once more, beside a run that takes its time."""
    case.moment(early=False, most=8)
    second = case.start(hooked=False)
    case.others.append(second)
    case.facts["second"] = second.wait(40)


def _kept_out(case: Case) -> list[str]:
    said = case.others[0].shown()
    told = "another process works here" in said
    if case.facts["second"] == REFUSED and told:
        return []
    return [f"the second writer ended with {case.facts['second']}: {said[-300:]}"]


def _other_world(case: Case) -> None:
    """Under tensor parallelism whole tensor groups, or none."""
    case.processes = case.random.choice((1, 4) if case.layout == TENSOR else (1, 3))
    if case.processes == 1 and case.layout == TENSOR:
        case.settings["tensor_parallel"] = 1


def _changed_config(case: Case) -> None:
    case.settings["optim"] = {"lr": 2e-3}


def _unchanged(case: Case) -> None:
    del case.settings["optim"]


KILLED = (-signal.SIGKILL,)
FAULTS = (
    Fault(
        "all connections of a rank closed", "network", lambda case: _closed(case, 1.0), (FAILED,),
        (BROKEN,), needs=SOCKETS,
    ),
    Fault(
        "some connections of a rank closed", "network", lambda case: _closed(case, 0.5),
        (FAILED,), (BROKEN,), needs=SOCKETS,
    ),
    Fault(
        "connections delayed", "network",
        lambda case: _filtered(case, DROP, 0.1, 1.5), (FINISHED,), needs=SOCKETS,
    ),
    Fault(
        "packets lost (15 %)", "network",
        lambda case: _filtered(case, LOSE, 1.0, 3.0), (FINISHED,), needs=SOCKETS,
    ),
    Fault(
        "connections go silent", "network", _silent, (FAILED,), HUNG, settings=QUICK,
        after=patient, needs=SOCKETS,
    ),
    Fault(
        "port in use", "launch", _port_taken, (FAILED,), (r"error: rank 0 .*{port}.*EADDRINUSE",),
    ),
    Fault("a node never comes", "launch", _alone, (FAILED,), (r"error: .*1/2 clients joined",)),
    Fault("second writer", "launch", _second_writer, (FINISHED,), prepare=_long, check=_kept_out),
    Fault(
        "other world size", "launch", kill_all_after(1), KILLED, after=_other_world, close=True,
    ),
    Fault(
        "config changed before a resumption", "launch", kill_all_after(1), KILLED,
        after=_changed_config, mend=_unchanged,
        refused=(r"error: \S+run: this run directory belongs to another config: "
                 r"optim\.lr=0\.002 \(was 0\.001\)",),
    ),
)  # fmt: skip
