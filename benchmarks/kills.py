"""Not a timing: a run that is killed again and again ends as if nothing had happened.

    python benchmarks/kills.py --kills 50

``ovtrain train`` on two processes (ZeRO-1, accumulation, two loader workers, a save in the
background every few steps) gets SIGKILL for its whole process group at random moments: while it
starts, between steps, in a save. The same command starts it again. In the end every weight, moment
and class row, and every logged row of the run (losses, norms, samples seen) must equal, to the bit,
those of a run that nobody disturbed. Exit status 1 where they do not.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import line

sys.path.insert(0, str(Path(__file__).parents[1]))
from ovtrain.checkpoint.restore import checkpoint_folder
from ovtrain.checkpoint.tensor_files import read_tensors
from tests.helpers.training import computed, logged, write_config, write_setup
from tests.helpers.world import environment, train_command


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.name}/{name}": tensor
        for path in sorted(checkpoint_folder(out).glob("*.safetensors"))
        for name, tensor in read_tensors(path).items()
    }


def start(config: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        train_command(config, 2),
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill(config: str, out: Path, moments: random.Random, after: float) -> str:
    """Start, and kill at a moment between now and ``after`` seconds from the first new row; what
    was going on."""
    had, began = logged(out), time.monotonic()
    job = start(config)
    early = moments.uniform(0, 8) if moments.random() < 0.2 else None
    moved = 0.0
    wait = moments.uniform(0, after)
    while job.poll() is None:
        now = time.monotonic()
        if not moved and logged(out) != had:
            moved = now
        if (early is not None and now > began + early) or (moved and now > moved + wait):
            break
        time.sleep(0.005)
    saving = any((out / "checkpoints").glob(".step-*.tmp"))
    if job.poll() is not None:
        raise RuntimeError(f"the run ended with status {job.returncode} before it was killed")
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    return "saving" if saving else "training" if moved else "starting"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--after", type=float, default=2.0, help="most seconds of training")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_setup(folder)
        run: dict[str, Any] = {"steps": given.steps, "global_batch": 7, "micro_batch": 2}
        run |= {"checkpoint_every": 3}
        straight, killed = (write_config(folder, name, **run) for name in ("straight", "killed"))
        assert start(straight).wait() == 0
        alone = time.monotonic() - began
        moments, met = random.Random(given.seed), dict[str, int]()
        for number in range(given.kills):
            when = kill(killed, folder / "killed", moments, given.after)
            met[when] = met.get(when, 0) + 1
            reached = logged(folder / "killed")
            print(f"kill {number + 1}: {when}, {reached} rows logged", file=sys.stderr, flush=True)
        assert logged(folder / "killed") < given.steps, "every kill must meet a run"
        assert start(killed).wait() == 0
        wanted, found = (tensors(folder / name) for name in ("straight", "killed"))
        differing = [n for n in wanted.keys() | found.keys() if n not in wanted or n not in found]
        differing += [n for n in wanted if n in found and not torch.equal(wanted[n], found[n])]
        rows = computed(folder / "straight") == computed(folder / "killed")
        left = [path.name for path in (folder / "killed" / "checkpoints").glob(".*")]
    shown = {
        "kills": given.kills,
        "met": met,
        "steps": given.steps,
        "seed": given.seed,
        "undisturbed_s": round(alone),
        "seconds": round(time.monotonic() - began),
        "tensors": len(wanted),
        "differing": differing,
        "rows_equal": rows,
        "left_over": left,
    }
    print(line("kills", **shown))
    return 0 if not differing and rows and not left else 1


if __name__ == "__main__":
    sys.exit(main())
