"""The far end of ``ovtrain launch hosts``: runs one command on its host, on a leash.

ssh passes no signals on, and what it started lives on when it dies. So the launcher talks to this
process through its standard input: first one line of JSON, {"command", "env", "cwd"}; then, at any
time, ``end SECONDS``: SIGTERM for the command, and SIGKILL where it is still there so much later.
The end of the input, with which the launcher's death arrives here, means ``end 300``: ranks save.

Exit status: the command's, 128 + signal where one ended it, 2 where it cannot be started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

from launch.processes import SAVE_S
from ovtrain.schema.isolated import die_with


def main() -> int:
    job: dict[str, Any] = json.loads(sys.stdin.readline() or "{}")
    if not job:  # the launcher died before it could say what to do
        return 2
    try:
        child = _start(job)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror} on this host", flush=True)
        return 2

    def ended_here(_number: int, _frame: FrameType | None) -> None:
        _end(child, SAVE_S)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ended_here)
    threading.Thread(target=_listen, args=[child], daemon=True).start()
    _relay(child)
    status = child.wait()
    _signal(child, signal.SIGKILL)  # what it left behind of its group
    return 128 - status if status < 0 else status


def _start(job: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        job["command"],
        env={**os.environ, **job["env"]},
        cwd=job["cwd"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=partial(die_with, os.getpid()),
    )


def _relay(child: subprocess.Popen[bytes]) -> None:
    """Pass its output on; without a launcher to read it, the command must not die of writing."""
    assert child.stdout is not None
    heard = True
    for line in child.stdout:
        try:
            if heard:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        except OSError:
            heard = False


def _listen(child: subprocess.Popen[bytes]) -> None:
    for line in sys.stdin:
        word, _, seconds = line.partition(" ")
        if word == "end":
            _end(child, float(seconds))
    _end(child, SAVE_S)


def _end(child: subprocess.Popen[bytes], seconds: float) -> None:
    if child.poll() is None:
        _signal(child, signal.SIGTERM)
        timer = threading.Timer(seconds, _signal, [child, signal.SIGKILL])
        timer.daemon = True
        timer.start()


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nothing, or (macOS) zombies alone
        os.killpg(child.pid, number)


if __name__ == "__main__":
    status = main()
    with suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    os._exit(status)
