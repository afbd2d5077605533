"""Storage: full, read-only, torn, flipped, lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .case import Case
from .fault import MOUNT, REFUSED, Fault
from .judge import reached
from .process import kill_all_after
from .site import EVERY

KILLED = (-signal.SIGKILL,)
MOST = 11
"""The last step at which storage fails that takes a while to fail."""
BUSY_S = 20
"""A mount with a file that is open for writing cannot be made read-only."""
DISK_MIB = 192
"""Enough for three checkpoints, and one in the making."""
TORN = r"refused \S+/{step}: .*{file} is damaged: \d+ bytes instead of \d+"
FLIPPED = r"refused \S+/{step}: .*{file} is damaged: other bytes than were written"
LOST = r"refused \S+/{step}: .*{file} is missing"
MANIFEST = r"refused \S+/{step}/manifest\.json|refused \S+/{step}: \S+manifest\.json"


def _chosen(case: Case, pattern: str, step: int = -1) -> Path:
    """A random file of a step directory, the newest one's; a fact."""
    folder = case.checkpoints()[step]
    path = case.random.choice(sorted(folder.glob(pattern)))
    case.facts |= {"step": folder.name, "file": path.name}
    return path


def cut(case: Case, path: Path) -> None:
    os.truncate(path, case.random.randrange(path.stat().st_size - 2))  # not a last newline alone


def flip(case: Case, path: Path) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[case.random.randrange(len(data))] ^= 1 << case.random.randrange(8)
    path.write_bytes(data)


def _of(pattern: str, change: Callable[[Case, Path], None]) -> Callable[[Case], None]:
    return lambda case: change(case, _chosen(case, pattern))


def _all_damaged(case: Case) -> None:
    for number in range(len(case.checkpoints())):
        path = _chosen(case, "*.safetensors", number)
        case.keep(path)
        flip(case, path)


def _gone(case: Case) -> None:
    for step in case.checkpoints():
        for path in step.iterdir():
            case.keep(path)
        shutil.rmtree(step)


def _point(text: str) -> Callable[[Case], None]:
    def after(case: Case) -> None:
        latest = case.out / "checkpoints" / "latest"
        latest.write_text(text) if text else latest.unlink()

    return after


def _torn_metrics(case: Case) -> None:
    """The last row is cut where it would be met again; else half a row more stands there."""
    path, newest = case.out / "metrics.jsonl", int(case.checkpoints()[-1].name[5:])
    data = path.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    if reached(case.out) > newest and '"event"' not in data[last:].decode():
        os.truncate(path, case.random.randrange(last + 1, len(data)))
    else:
        row = json.dumps({"step": newest + 1, "time": 0.0, "loss": 1.0})
        path.write_bytes(data + row[: case.random.randrange(1, len(row))].encode())


def may_mount() -> bool:
    """Whether this process may: root may not everywhere."""
    if not shutil.which("mount"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "none", folder]
        done = subprocess.run(command, check=False, capture_output=True)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
    return done.returncode == 0


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _unmounting(case: Case, folder: Path) -> None:
    case.cleanups.append(partial(_unmount, folder))


def _unmount(folder: Path) -> None:
    """Whether or not it still is one."""
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def _small_disk(case: Case) -> None:
    disk = case.folder / "disk"
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(disk))
    _unmounting(case, disk)
    case.out = disk / "run"
    case.passing.append(case.out)


def _fill(case: Case) -> None:
    case.moment(early=False, least=2, most=MOST)
    block = bytes(1 << 16)
    with open(case.folder / "disk" / "filler", "wb", buffering=0) as handle:
        try:
            while True:
                handle.write(block)
        except OSError:  # full
            return


def _make_room(case: Case) -> None:
    (case.folder / "disk" / "filler").unlink()


def _read_only(case: Case) -> None:
    folder = case.out / "checkpoints"
    case.moment(early=False, checkpoints=1, least=EVERY, most=MOST)
    _mount("--bind", str(folder), str(folder))
    _unmounting(case, folder)
    command = ["mount", "-o", "remount,ro,bind", str(folder)]
    deadline = time.monotonic() + BUSY_S
    while subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder} was busy for {BUSY_S} s")
        time.sleep(0.005)


def _writable(case: Case) -> None:
    _unmount(case.out / "checkpoints")


def _limit_files(case: Case) -> None:
    case.moment(early=False)
    pid = case.some_rank()
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))  # type: ignore[attr-defined]


def _cannot(why: str) -> str:
    """What was to be written, and by whom."""
    return rf"error: rank \d on \S+: .*(could not be saved: rank \d: |metrics\.jsonl: ){why}"


def _at_rest(name: str, pattern: str, change: Callable[[Case, Path], None], says: str) -> Fault:
    return Fault(
        name, "checkpoint", kill_all_after(2), KILLED, after=_of(pattern, change), then_says=(says,)
    )


FAULTS = (
    Fault(
        "disk full", "storage", _fill, (REFUSED,), (_cannot("No space left on device"),),
        prepare=_small_disk, after=_make_room, needs=MOUNT,
    ),
    Fault(
        "run directory read-only", "storage", _read_only, (REFUSED,),
        (r"could not be saved: rank \d: .*Read-only file system",), after=_writable, needs=MOUNT,
    ),
    Fault(
        "file size limit", "storage", _limit_files, (REFUSED,),
        (r"error: rank \d on \S+: .*could not be saved: rank {rank}: File too large|"
         r"error: rank {rank} on \S+: .*metrics\.jsonl: File too large",),
    ),
    _at_rest("checkpoint file torn", "*.safetensors", cut, TORN),
    _at_rest("bit flipped in a checkpoint", "*.safetensors", flip, FLIPPED),
    _at_rest("rank's file missing", "*.safetensors", lambda case, path: path.unlink(), LOST),
    _at_rest("checkpoint's state flipped", "state.json", flip, FLIPPED),
    _at_rest("manifest torn", "manifest.json", cut, MANIFEST),
    _at_rest("manifest flipped", "manifest.json", flip, MANIFEST),
    Fault("`latest` lost", "checkpoint", kill_all_after(1), KILLED, after=_point("")),
    Fault(
        "`latest` points nowhere", "checkpoint", kill_all_after(1), KILLED,
        after=_point("step-00099999\n"),
    ),
    Fault(
        "all checkpoints damaged", "checkpoint", kill_all_after(2), KILLED, after=_all_damaged,
        refused=(r"error: \S+checkpoints: no checkpoint is sound: .*{file} is damaged",),
        mend=Case.put_back,
    ),
    Fault(
        "all checkpoints gone", "checkpoint", kill_all_after(1), KILLED, after=_gone,
        refused=(r"error: \S+checkpoints: .*latest names one, but there is none",),
        mend=Case.put_back,
    ),
    Fault("metrics file torn", "storage", kill_all_after(1), KILLED, after=_torn_metrics),
)  # fmt: skip
