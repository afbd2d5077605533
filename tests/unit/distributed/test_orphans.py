"""A rank whose launcher is gone does not train on, however early the launcher died."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.world import environment

RANK = """
import os, sys, time
from pathlib import Path
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(float(sys.argv[2]))
from ovtrain.distributed.context import die_with_launcher
die_with_launcher()
time.sleep(60)
"""
LAUNCHER = """
import subprocess, sys, time
from pathlib import Path
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2], sys.argv[3]])
while not Path(sys.argv[2]).exists() or not Path(sys.argv[2]).read_text():
    time.sleep(0.01)
time.sleep(float(sys.argv[4]))
"""


def rank_after(tmp_path: Path, before: float, launcher_lives: float) -> int:
    """Start a launcher that lives so long and a rank that binds itself to it after ``before``
    seconds; the rank's process, the launcher being dead."""
    pid = tmp_path / "pid"
    environ = environment() | {"TORCHELASTIC_RUN_ID": "x"}
    given = [RANK, str(pid), str(before), str(launcher_lives)]
    subprocess.run([sys.executable, "-c", LAUNCHER, *given], env=environ, timeout=60, check=True)
    return int(pid.read_text())


def is_gone(process: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
            if Path(f"/proc/{process}/stat").read_text().split()[2] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    os.kill(process, 9)
    return False


def test_a_rank_dies_with_its_launcher(tmp_path: Path):
    assert is_gone(rank_after(tmp_path, before=0, launcher_lives=4))


def test_a_rank_whose_launcher_died_before_it_knew_ends_at_once(tmp_path: Path):
    assert is_gone(rank_after(tmp_path, before=0.5, launcher_lives=0))
