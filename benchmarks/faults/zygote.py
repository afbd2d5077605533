"""Starts of ``python -m launch.node`` without its seconds of imports.

    python -m faults.zygote DESCRIPTOR

This process has imported torch, DeepSpeed and ovtrain, has one thread and no process group. Asked
through the socket DESCRIPTOR, a JSON line each, it forks a node; the node is launch.node's own
``main``, except that it forks its ranks where it would execute them. A rank then runs the module
``ovtrain.train`` as ``__main__``. What a new interpreter would do on its way out is done by
``_leave``, but for the destruction of its modules.

    {"id": 1, "argv": [...], "env": {...}, "output": "FILE"}  ->  {"id": 1, "pid": 99}
                                                     and later  {"id": 1, "status": 0}
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NoReturn

from faults.within import install
from ovtrain.schema.isolated import die_with

PR_SET_NAME = 15
LOOK_S = 0.005
DEFAULTS = (signal.SIGTERM, signal.SIGUSR1)


class ForkedProcess:
    """What launch.node needs of ``subprocess.Popen``: the rank is a fork of the node."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        preexec_fn: Callable[[], None],
        **_as_the_node_asks: Any,
    ) -> None:
        read, write = os.pipe()
        self._lock, self.returncode = threading.Lock(), None
        self.pid = os.fork()
        if not self.pid:
            _become_rank(command, env, write, preexec_fn)
        os.close(write)
        self.stdout = os.fdopen(read, errors="replace")

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if ended else None
            return self.returncode

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(LOOK_S)
        return status


def _become_rank(
    command: Sequence[str], env: Mapping[str, str], output: int, preexec_fn: Callable[[], None]
) -> NoReturn:
    """As ``execve`` after ``preexec_fn`` would: own session, own output, no signal handlers."""
    os.setsid()
    _become(output, env, f"rank-{env['RANK']}")
    preexec_fn()
    _, flag, module, *arguments = command
    assert flag == "-m", command
    sys.argv = [module, *arguments]

    def work() -> None:
        install(env)
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    _leave(work)


def _become(output: int, env: Mapping[str, str], name: str) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 256)
    for number in DEFAULTS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())


def _leave(work: Callable[[], object]) -> NoReturn:
    """Do ``work`` and end the process with its status, as an interpreter does."""
    status = 1
    try:
        work()
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 (the end of a program)
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _node(asked: Mapping[str, Any], zygote: int) -> NoReturn:
    from launch import node

    os.setsid()
    output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    _become(output, {**os.environ, **asked["env"]}, "node")
    die_with(zygote)
    pipes = {"PIPE": subprocess.PIPE, "STDOUT": subprocess.STDOUT}
    node.subprocess = SimpleNamespace(Popen=ForkedProcess, **pipes)  # type: ignore[assignment]
    _leave(lambda: sys.exit(node.main(asked["argv"])))


def _import_all() -> None:
    """What a rank would import."""
    from ovtrain.engine.deepspeed_backend import import_deepspeed

    import_deepspeed()
    for module in (
        "deepspeed.runtime.zero.muon.muon_optimizer",  # which ZeRO asks for, and with it a compiler
        "deepspeed.runtime.zero.stage3",
        "launch.node",
        "ovtrain.engine.trainer",
        "tests.helpers.training",  # of the hooks
    ):
        import_module(module)


def serve(descriptor: int) -> None:
    """Answer until the other end closes."""
    channel = socket.socket(fileno=descriptor)
    lines, nodes = channel.makefile("rb"), dict[int, int]()

    def tell(**what: int) -> None:
        channel.sendall(json.dumps(what).encode() + b"\n")

    tell(ready=os.getpid())
    while True:
        if select.select([channel], [], [], LOOK_S)[0]:
            line = lines.readline()
            if not line:
                return
            asked = json.loads(line)
            zygote, pid = os.getpid(), os.fork()
            if not pid:
                _node(asked, zygote)
            nodes[pid] = asked["id"]
            tell(id=asked["id"], pid=pid)
        for pid, number in list(nodes.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del nodes[pid]
                tell(id=number, status=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    _import_all()
    assert threading.active_count() == 1 == len(os.listdir("/proc/self/task"))
    serve(int(sys.argv[1]))
